//! Models written by the tests: too large to commit, or too many.

use crate::tensor::{DataType, Tensor};
use prost::Message;
use std::path::Path;
use tract_onnx::pb::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto,
    TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, attribute_proto, tensor_proto, tensor_shape_proto,
    type_proto,
};

/// Writes an MLP without activations: `widths[0]` inputs, then one `MatMul` to each next width. Every weight of a layer
/// into width n is 1/n, so that inputs of ones give ones times the ratio of widths.
pub(super) fn mlp(dir: &Path, widths: &[usize]) {
    let mut graph = GraphProto { name: "mlp".into(), ..Default::default() };
    for (layer, pair) in widths.windows(2).enumerate() {
        let value = 1.0 / f32::from(u16::try_from(pair[0]).unwrap());
        let weight = format!("w{layer}");
        graph.initializer.push(TensorProto {
            name: weight.clone(),
            dims: pair.iter().map(|d| i64::try_from(*d).unwrap()).collect(),
            data_type: tensor_proto::DataType::Float as i32,
            raw_data: value.to_le_bytes().repeat(pair[0] * pair[1]),
            ..Default::default()
        });
        graph.node.push(NodeProto {
            op_type: "MatMul".into(),
            input: vec![layer_name(layer, widths), weight],
            output: vec![layer_name(layer + 1, widths)],
            ..Default::default()
        });
    }
    let batch = || Value::DimParam("N".into());
    let width = |n: usize| Value::DimValue(i64::try_from(n).unwrap());
    graph.input.push(value("x", DataType::Fp32, Some(vec![batch(), width(widths[0])])));
    graph.output.push(value("y", DataType::Fp32, Some(vec![batch(), width(*widths.last().unwrap())])));
    write(dir, graph);
}

/// The same, with the weights in a file of their own.
pub(super) fn mlp_external(dir: &Path, widths: &[usize]) {
    mlp(dir, widths);
    let file = dir.join("model.onnx");
    let mut model = ModelProto::decode(&*std::fs::read(&file).unwrap()).unwrap();
    let mut weights = Vec::new();
    for tensor in &mut model.graph.as_mut().unwrap().initializer {
        let entry = |key: &str, value: String| StringStringEntryProto { key: key.into(), value };
        tensor.external_data = vec![
            entry("location", "weights.bin".into()),
            entry("offset", weights.len().to_string()),
            entry("length", tensor.raw_data.len().to_string()),
        ];
        tensor.data_location = Some(tensor_proto::DataLocation::External as i32);
        weights.append(&mut tensor.raw_data);
    }
    std::fs::write(dir.join("weights.bin"), weights).unwrap();
    std::fs::write(file, model.encode_to_vec()).unwrap();
}

/// Writes `y = x * factor + shift` of FP32 [N,2], with `factor` (2) and `shift` (0.5), both [1], listed as inputs beside `more` weights that
/// nothing reads.
pub(super) fn adjustable(dir: &Path, ir_version: i64, more: usize) {
    let weight = |name: &str, value: f32| TensorProto {
        name: name.into(),
        dims: vec![1],
        data_type: tensor_proto::DataType::Float as i32,
        raw_data: value.to_le_bytes().to_vec(),
        ..Default::default()
    };
    let node = |op: &str, input: [&str; 2], output: &str| NodeProto {
        op_type: op.into(),
        input: input.iter().map(|s| (*s).to_owned()).collect(),
        output: vec![output.into()],
        ..Default::default()
    };
    let rows = |name: &str| value(name, DataType::Fp32, Some(vec![Value::DimParam("N".into()), Value::DimValue(2)]));
    let scalar = |name: &str| value(name, DataType::Fp32, Some(vec![Value::DimValue(1)]));
    let more: Vec<String> = (0..more).map(|i| format!("w{i}")).collect();
    let graph = GraphProto {
        name: "adjustable".into(),
        node: vec![node("Mul", ["x", "factor"], "product"), node("Add", ["product", "shift"], "y")],
        initializer: [weight("factor", 2.0), weight("shift", 0.5)]
            .into_iter()
            .chain(more.iter().map(|name| weight(name, 2.0)))
            .collect(),
        input: [scalar("factor"), rows("x"), scalar("shift")]
            .into_iter()
            .chain(more.iter().map(|name| scalar(name)))
            .collect(),
        output: vec![rows("y")],
        ..Default::default()
    };
    std::fs::write(dir.join("model.onnx"), ModelProto { ir_version, ..model(graph) }.encode_to_vec()).unwrap();
}

/// Writes a model that counts to `n`, an INT64 scalar, in a `Loop`, and answers FP32 `count`.
pub(super) fn counting(dir: &Path) {
    let scalar = |name: &str, datatype| value(name, datatype, Some(Vec::new()));
    let constant = |name: &str, data_type: tensor_proto::DataType, raw_data: Vec<u8>| TensorProto {
        name: name.into(),
        data_type: data_type as i32,
        raw_data,
        ..Default::default()
    };
    let node = |op: &str, input: &[&str], output: &str| NodeProto {
        op_type: op.into(),
        input: input.iter().map(|s| (*s).to_owned()).collect(),
        output: vec![output.into()],
        ..Default::default()
    };
    let body = GraphProto {
        name: "body".into(),
        node: vec![node("Add", &["before", "one"], "after"), node("Identity", &["go_on"], "goes_on")],
        initializer: vec![constant("one", tensor_proto::DataType::Float, 1f32.to_le_bytes().to_vec())],
        input: vec![scalar("i", DataType::Int64), scalar("go_on", DataType::Bool), scalar("before", DataType::Fp32)],
        output: vec![scalar("goes_on", DataType::Bool), scalar("after", DataType::Fp32)],
        ..Default::default()
    };
    let mut counted = node("Loop", &["n", "go", "start"], "count");
    counted.attribute.push(AttributeProto {
        name: "body".into(),
        r#type: attribute_proto::AttributeType::Graph as i32,
        g: Some(body),
        ..Default::default()
    });
    let graph = GraphProto {
        name: "counting".into(),
        node: vec![counted],
        initializer: vec![
            constant("go", tensor_proto::DataType::Bool, vec![1]),
            constant("start", tensor_proto::DataType::Float, 0f32.to_le_bytes().to_vec()),
        ],
        input: vec![scalar("n", DataType::Int64)],
        output: vec![scalar("count", DataType::Fp32)],
        ..Default::default()
    };
    write(dir, graph);
}

/// Writes a model of one node. Its inputs take the types and ranks of the tensors given, with every dimension free;
/// its outputs are `outputs`, of unknown rank.
pub(super) fn one_node(
    dir: &Path,
    op: &str,
    attributes: &[(&str, i64)],
    inputs: &[(&str, Tensor)],
    outputs: &[(&str, DataType)],
) {
    let free = |rank: usize| (0..rank).map(|_| Value::DimParam(String::new())).collect();
    let attribute = |(name, i): &(&str, i64)| AttributeProto {
        name: (*name).into(),
        r#type: attribute_proto::AttributeType::Int as i32,
        i: *i,
        ..Default::default()
    };
    let node = NodeProto {
        op_type: op.into(),
        name: "the_node".into(),
        input: inputs.iter().map(|(name, _)| (*name).to_owned()).collect(),
        output: outputs.iter().map(|(name, _)| (*name).to_owned()).collect(),
        attribute: attributes.iter().map(attribute).collect(),
        ..Default::default()
    };
    let graph = GraphProto {
        name: op.into(),
        node: vec![node],
        input: inputs.iter().map(|(name, t)| value(name, t.datatype(), Some(free(t.shape().len())))).collect(),
        output: outputs.iter().map(|(name, datatype)| value(name, *datatype, None)).collect(),
        ..Default::default()
    };
    write(dir, graph);
}

/// Models that keep a tensor in the file `location`, each in another part of the model.
pub(super) fn external_tensors(location: &str) -> Vec<(&'static str, Vec<u8>)> {
    let tensor = || TensorProto {
        name: "w".into(),
        dims: vec![1],
        data_type: tensor_proto::DataType::Float as i32,
        data_location: Some(tensor_proto::DataLocation::External as i32),
        external_data: vec![StringStringEntryProto { key: "location".into(), value: location.into() }],
        ..Default::default()
    };
    let constant = || NodeProto {
        op_type: "Constant".into(),
        output: vec!["w".into()],
        attribute: vec![AttributeProto {
            name: "value".into(),
            r#type: attribute_proto::AttributeType::Tensor as i32,
            t: Some(tensor()),
            ..Default::default()
        }],
        ..Default::default()
    };
    let graph = |node: Vec<NodeProto>, initializer: Vec<TensorProto>| GraphProto {
        name: "external".into(),
        node,
        initializer,
        output: vec![value("w", DataType::Fp32, None)],
        ..Default::default()
    };
    let branch = |name: &str, node: NodeProto| AttributeProto {
        name: name.into(),
        r#type: attribute_proto::AttributeType::Graph as i32,
        g: Some(graph(vec![node], Vec::new())),
        ..Default::default()
    };
    let both = NodeProto {
        op_type: "If".into(),
        input: vec!["condition".into()],
        output: vec!["w".into()],
        attribute: vec![branch("then_branch", constant()), branch("else_branch", constant())],
        ..Default::default()
    };
    let call = NodeProto { op_type: "F".into(), domain: "own".into(), output: vec!["w".into()], ..Default::default() };
    let function = FunctionProto {
        name: Some("F".into()),
        domain: Some("own".into()),
        output: vec!["w".into()],
        node: vec![constant()],
        ..Default::default()
    };
    let own = OperatorSetIdProto { domain: "own".into(), version: 1 };
    let with_function = ModelProto {
        opset_import: vec![own.clone(), OperatorSetIdProto { domain: String::new(), version: 17 }],
        functions: vec![FunctionProto { opset_import: vec![own], ..function }],
        ..model(graph(vec![call], Vec::new()))
    };
    vec![
        ("an initializer", model(graph(Vec::new(), vec![tensor()])).encode_to_vec()),
        ("a constant", model(graph(vec![constant()], Vec::new())).encode_to_vec()),
        ("a branch", model(graph(vec![both], Vec::new())).encode_to_vec()),
        ("a function", with_function.encode_to_vec()),
    ]
}

type Value = tensor_shape_proto::dimension::Value;

fn write(dir: &Path, graph: GraphProto) {
    std::fs::write(dir.join("model.onnx"), model(graph).encode_to_vec()).unwrap();
}

fn model(graph: GraphProto) -> ModelProto {
    ModelProto {
        ir_version: 8,
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 17 }],
        graph: Some(graph),
        ..Default::default()
    }
}

fn layer_name(layer: usize, widths: &[usize]) -> String {
    match layer {
        0 => "x".to_owned(),
        last if last == widths.len() - 1 => "y".to_owned(),
        inner => format!("h{inner}"),
    }
}

fn value(name: &str, datatype: DataType, dims: Option<Vec<Value>>) -> ValueInfoProto {
    let dimension = |value| tensor_shape_proto::Dimension { value: Some(value), ..Default::default() };
    let shape = dims.map(|dims| TensorShapeProto { dim: dims.into_iter().map(dimension).collect() });
    let elem_type = match datatype {
        DataType::Fp32 => tensor_proto::DataType::Float,
        DataType::Fp64 => tensor_proto::DataType::Double,
        DataType::Int32 => tensor_proto::DataType::Int32,
        DataType::Int64 => tensor_proto::DataType::Int64,
        DataType::Bool => tensor_proto::DataType::Bool,
        DataType::Bytes => tensor_proto::DataType::String,
        other => panic!("no test needs {other}"),
    };
    let tensor = type_proto::Tensor { elem_type: elem_type as i32, shape };
    let r#type = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() };
    ValueInfoProto { name: name.into(), r#type: Some(r#type), ..Default::default() }
}
