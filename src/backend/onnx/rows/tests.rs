use super::*;
use prost::Message as _;
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, attribute_proto::AttributeType, tensor_shape_proto, type_proto,
};

fn node(op: &str, inputs: &[&str], outputs: &[&str], attributes: &[(&str, Attr)]) -> NodeProto {
    let (domain, op) = op.split_once(':').unwrap_or(("", op));
    NodeProto {
        op_type: op.to_owned(),
        domain: domain.to_owned(),
        input: inputs.iter().map(|s| (*s).to_owned()).collect(),
        output: outputs.iter().map(|s| (*s).to_owned()).collect(),
        attribute: attributes.iter().map(|(name, value)| value.clone().named(name)).collect(),
        ..Default::default()
    }
}

#[derive(Clone)]
enum Attr {
    Int(i64),
    Ints(&'static [i64]),
    Text(&'static str),
}

impl Attr {
    fn named(self, name: &str) -> AttributeProto {
        let mut a = AttributeProto { name: name.to_owned(), ..Default::default() };
        match self {
            Attr::Int(i) => (a.i, a.r#type) = (i, AttributeType::Int as i32),
            Attr::Ints(ints) => (a.ints, a.r#type) = (ints.to_vec(), AttributeType::Ints as i32),
            Attr::Text(s) => (a.s, a.r#type) = (s.as_bytes().to_vec(), AttributeType::String as i32),
        }
        a
    }
}

fn port(name: &str, rank: usize) -> ValueInfoProto {
    let dim = |i: usize| tensor_shape_proto::Dimension {
        value: (i > 0).then_some(tensor_shape_proto::dimension::Value::DimValue(4)),
        ..Default::default()
    };
    let shape = TensorShapeProto { dim: (0..rank).map(dim).collect() };
    let tensor = type_proto::Tensor { elem_type: 1, shape: Some(shape) };
    let r#type = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() };
    ValueInfoProto { name: name.to_owned(), r#type: Some(r#type), ..Default::default() }
}

fn integers_tensor(name: &str, values: &[i64]) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        dims: vec![i64::try_from(values.len()).unwrap()],
        data_type: 7,
        int64_data: values.to_vec(),
        ..Default::default()
    }
}

fn weights(name: &str, dims: &[i64]) -> TensorProto {
    let n: i64 = dims.iter().product();
    let raw_data = vec![0; usize::try_from(n).unwrap() * 4];
    TensorProto { name: name.to_owned(), dims: dims.to_vec(), data_type: 1, raw_data, ..Default::default() }
}

/// The result for a model with input `x` of this rank, output `y`, and some constants.
fn result_of(rank: usize, nodes: Vec<NodeProto>) -> RowAnalysis {
    result_at(17, rank, nodes)
}

fn result_at(opset: i64, rank: usize, nodes: Vec<NodeProto>) -> RowAnalysis {
    let model = ModelProto {
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: opset }],
        graph: Some(GraphProto {
            node: nodes,
            initializer: vec![
                weights("w", &[4, 4]),
                weights("b", &[4]),
                integers_tensor("rows_first", &[-1, 4]),
                integers_tensor("one_row", &[1, -1]),
                integers_tensor("zero", &[0]),
                integers_tensor("one", &[1]),
                integers_tensor("last", &[-1]),
                integers_tensor("end", &[i64::MAX]),
            ],
            input: vec![port("x", rank)],
            output: vec![port("y", rank)],
            ..Default::default()
        }),
        ..Default::default()
    };
    analyse(&Model::read(model.encode_to_vec().into()).unwrap(), &HashSet::from(["x"]))
}

fn is_mixed(analysis: &RowAnalysis, expected: &str) -> bool {
    matches!(analysis, RowAnalysis::Mixed { operator, .. } if operator == expected)
}

#[test]
fn a_perceptron_has_independent_rows() {
    let nodes = vec![
        node("MatMul", &["x", "w"], &["a"], &[]),
        node("Add", &["a", "b"], &["c"], &[]),
        node("Relu", &["c"], &["d"], &[]),
        node("Gemm", &["d", "w", "b"], &["e"], &[]),
        node("Softmax", &["e"], &["y"], &[("axis", Attr::Int(1))]),
    ];
    assert_eq!(result_of(2, nodes), RowAnalysis::Independent);
}

#[test]
fn operators_that_compute_across_the_batch_axis_are_named() {
    let cases: Vec<(&str, usize, NodeProto)> = vec![
        ("ReduceMax", 2, node("ReduceMax", &["x"], &["y"], &[("axes", Attr::Ints(&[0]))])),
        ("ReduceMean", 2, node("ReduceMean", &["x"], &["y"], &[("axes", Attr::Ints(&[-2]))])),
        ("ReduceSum", 2, node("ReduceSum", &["x"], &["y"], &[])),
        ("ReduceSum", 2, node("ReduceSum", &["x", "zero"], &["y"], &[])),
        ("Softmax", 2, node("Softmax", &["x"], &["y"], &[("axis", Attr::Int(0))])),
        ("Softmax", 1, node("Softmax", &["x"], &["y"], &[])),
        ("CumSum", 2, node("CumSum", &["x", "zero"], &["y"], &[])),
        ("TopK", 2, node("TopK", &["x", "one"], &["y"], &[("axis", Attr::Int(0))])),
        ("ArgMax", 2, node("ArgMax", &["x"], &["y"], &[])),
        ("DynamicQuantizeLinear", 2, node("DynamicQuantizeLinear", &["x"], &["y", "scale", "point"], &[])),
        (
            "com.microsoft:DynamicQuantizeMatMul",
            2,
            node("com.microsoft:DynamicQuantizeMatMul", &["x", "w"], &["y"], &[]),
        ),
        ("MeanVarianceNormalization", 4, node("MeanVarianceNormalization", &["x"], &["y"], &[])),
        ("LayerNormalization", 2, node("LayerNormalization", &["x", "b"], &["y"], &[("axis", Attr::Int(0))])),
        (
            "BatchNormalization",
            2,
            node("BatchNormalization", &["x", "b", "b", "b", "b"], &["y"], &[("training_mode", Attr::Int(1))]),
        ),
        ("NonZero", 2, node("NonZero", &["x"], &["y"], &[])),
        ("Gather", 2, node("Gather", &["x", "zero"], &["y"], &[])),
        ("Slice", 2, node("Slice", &["x", "zero", "one", "zero"], &["y"], &[])),
        ("Concat", 2, node("Concat", &["x", "x"], &["y"], &[("axis", Attr::Int(0))])),
        ("Split", 2, node("Split", &["x"], &["y", "z"], &[])),
        ("LSTM", 3, node("LSTM", &["x", "w", "w"], &["y"], &[])),
        ("acme:Anything", 2, node("acme:Anything", &["x"], &["y"], &[])),
        ("RandomUniformLike", 2, node("RandomUniformLike", &["x"], &["y"], &[])),
        ("Einsum", 2, node("Einsum", &["x"], &["y"], &[("equation", Attr::Text("nd->d"))])),
        ("Gemm", 2, node("Gemm", &["x", "w"], &["y"], &[("transA", Attr::Int(1))])),
        ("MatMul", 2, node("MatMul", &["w", "x"], &["y"], &[])),
    ];
    for (expected, rank, node) in cases {
        let found = result_of(rank, vec![node]);
        assert!(is_mixed(&found, expected), "{expected}: {found:?}");
    }
}

#[test]
fn the_axis_is_followed_through_moves() {
    let nodes = vec![
        node("Transpose", &["x"], &["t"], &[("perm", Attr::Ints(&[1, 0, 2]))]),
        node("LSTM", &["t", "w", "w"], &["all", "last_state"], &[]),
        node("Squeeze", &["last_state", "zero"], &["y"], &[]),
    ];
    assert_eq!(result_of(3, nodes), RowAnalysis::Independent);
    let nodes = vec![
        node("Transpose", &["x"], &["t"], &[("perm", Attr::Ints(&[1, 0]))]),
        node("Softmax", &["t"], &["y"], &[("axis", Attr::Int(1))]),
    ];
    assert!(is_mixed(&result_of(2, nodes), "Softmax"));
    let nodes = vec![
        node("Unsqueeze", &["x", "zero"], &["u"], &[]),
        node("ReduceMax", &["u"], &["y"], &[("axes", Attr::Ints(&[1]))]),
    ];
    assert!(is_mixed(&result_of(2, nodes), "ReduceMax"));
    let nodes = vec![
        node("Reshape", &["x", "rows_first"], &["r"], &[]),
        node("ReduceMax", &["r"], &["y"], &[("axes", Attr::Ints(&[0]))]),
    ];
    assert!(is_mixed(&result_of(3, nodes), "ReduceMax"));
}

#[test]
fn the_number_of_rows_may_shape_but_not_enter_the_values() {
    let flat = vec![
        node("Shape", &["x"], &["extents"], &[]),
        node("Gather", &["extents", "zero"], &["rows"], &[]),
        node("Concat", &["rows", "last"], &["shape"], &[("axis", Attr::Int(0))]),
        node("Reshape", &["x", "shape"], &["y"], &[]),
    ];
    assert_eq!(result_of(3, flat), RowAnalysis::Independent);
    let divided = vec![
        node("Shape", &["x"], &["extents"], &[]),
        node("Gather", &["extents", "zero"], &["rows"], &[]),
        node("Cast", &["rows"], &["n"], &[("to", Attr::Int(1))]),
        node("Div", &["x", "n"], &["y"], &[]),
    ];
    assert!(is_mixed(&result_of(2, divided), "Div"));
    // The width of a row is the same for every row.
    let by_width = vec![
        node("Shape", &["x"], &["extents"], &[]),
        node("Gather", &["extents", "one"], &["width"], &[]),
        node("Cast", &["width"], &["n"], &[("to", Attr::Int(1))]),
        node("Div", &["x", "n"], &["y"], &[]),
    ];
    assert_eq!(result_of(2, by_width), RowAnalysis::Independent);
}

#[test]
fn values_of_one_row_against_all_others_are_mixed() {
    let nodes = vec![
        node("Unsqueeze", &["x", "zero"], &["a"], &[]),
        node("Unsqueeze", &["x", "one"], &["c"], &[]),
        node("Sub", &["a", "c"], &["d"], &[]),
        node("ReduceMax", &["d"], &["y"], &[("axes", Attr::Ints(&[1]))]),
    ];
    assert!(is_mixed(&result_of(2, nodes), "Sub"));
    let nodes = vec![
        node("Transpose", &["x"], &["t"], &[("perm", Attr::Ints(&[1, 0]))]),
        node("MatMul", &["x", "t"], &["y"], &[]),
    ];
    assert!(is_mixed(&result_of(2, nodes), "MatMul"));
}

#[test]
fn old_softmax_works_on_all_axes_from_its_own() {
    let nodes = |axis| vec![node("Softmax", &["x"], &["y"], &[("axis", Attr::Int(axis))])];
    assert!(is_mixed(&result_at(11, 3, nodes(0)), "Softmax"));
    assert_eq!(result_at(11, 3, nodes(1)), RowAnalysis::Independent);
    assert_eq!(result_at(11, 3, vec![node("Softmax", &["x"], &["y"], &[])]), RowAnalysis::Independent);
}

#[test]
fn what_cannot_be_followed_is_unknown_and_names_the_operator() {
    let nodes = vec![node("Reshape", &["x", "one_row"], &["r"], &[]), node("Relu", &["r"], &["y"], &[])];
    assert_eq!(result_of(2, nodes), RowAnalysis::Unknown { operator: "Reshape".into() });
}

#[test]
fn functions_are_followed_and_bounded() {
    use tract_onnx::pb::FunctionProto;
    let function = |name: &str, node: Vec<NodeProto>| FunctionProto {
        name: Some(name.to_owned()),
        domain: Some("own".to_owned()),
        input: vec!["a".to_owned()],
        output: vec!["c".to_owned()],
        node,
        ..Default::default()
    };
    let model = |call: &str, functions: Vec<FunctionProto>| {
        let graph = GraphProto {
            node: vec![node(&format!("own:{call}"), &["x"], &["y"], &[])],
            input: vec![port("x", 2)],
            output: vec![port("y", 2)],
            ..Default::default()
        };
        let model = ModelProto { graph: Some(graph), functions, ..Default::default() };
        analyse(&Model::read(model.encode_to_vec().into()).unwrap(), &HashSet::from(["x"]))
    };
    let softmax = vec![node("Softmax", &["a"], &["c"], &[("axis", Attr::Int(0))])];
    assert!(is_mixed(&model("f", vec![function("f", softmax)]), "Softmax"));
    assert_eq!(model("f", vec![function("f", vec![node("Relu", &["a"], &["c"], &[])])]), RowAnalysis::Independent);
    // Each function calls the next twice: 2^40 visits without a bound.
    let mut functions: Vec<FunctionProto> = (0..40)
        .map(|i| {
            let next = format!("own:f{}", i + 1);
            function(&format!("f{i}"), vec![node(&next, &["a"], &["b"], &[]), node(&next, &["b"], &["c"], &[])])
        })
        .collect();
    functions.push(function("f40", vec![node("Relu", &["a"], &["c"], &[])]));
    assert!(matches!(model("f0", functions), RowAnalysis::Unknown { .. }));
    // One that calls itself.
    let itself = vec![node("own:f", &["a"], &["c"], &[])];
    assert!(matches!(model("f", vec![function("f", itself)]), RowAnalysis::Unknown { .. }));
}

#[test]
fn small_integer_constants_are_read_in_every_encoding_and_large_ones_are_not() {
    let read = |tensor: TensorProto| Constant::decode(tensor.encode_to_vec().as_slice()).unwrap().integers();
    let raw = |data_type, bytes: Vec<u8>| TensorProto { data_type, raw_data: bytes, ..Default::default() };
    assert_eq!(read(integers_tensor("a", &[-1, 0, i64::MAX])), Some(vec![-1, 0, i64::MAX]));
    assert_eq!(read(TensorProto { data_type: 6, int32_data: vec![-2, 7], ..Default::default() }), Some(vec![-2, 7]));
    assert_eq!(read(raw(7, (-3_i64).to_le_bytes().to_vec())), Some(vec![-3]));
    assert_eq!(read(raw(6, (-4_i32).to_le_bytes().to_vec())), Some(vec![-4]));
    assert_eq!(read(integers_tensor("a", &[1; 65])), None);
    assert_eq!(read(raw(7, vec![0; 8 * 65])), None);
    assert_eq!(read(weights("a", &[2])), None, "floats are no integers");
}
