//! Models too large to commit, written when a test needs them.

use prost::Message;
use std::path::Path;
use tract_onnx::pb::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
    tensor_proto, tensor_shape_proto, type_proto,
};

/// Writes an MLP without activations: `widths[0]` inputs, then one `Gemm` to each next width. Every weight of a layer
/// into width n is 1/n, so that inputs of ones give ones times the ratio of widths.
pub fn mlp(dir: &Path, widths: &[usize]) {
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
            input: vec![name(layer, widths), weight],
            output: vec![name(layer + 1, widths)],
            ..Default::default()
        });
    }
    graph.input.push(rows("x", widths[0]));
    graph.output.push(rows("y", *widths.last().unwrap()));
    let model = ModelProto {
        ir_version: 8,
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 17 }],
        graph: Some(graph),
        ..Default::default()
    };
    std::fs::write(dir.join("model.onnx"), model.encode_to_vec()).unwrap();
}

fn name(layer: usize, widths: &[usize]) -> String {
    match layer {
        0 => "x".to_owned(),
        last if last == widths.len() - 1 => "y".to_owned(),
        inner => format!("h{inner}"),
    }
}

fn rows(name: &str, width: usize) -> ValueInfoProto {
    use tensor_shape_proto::{Dimension, dimension::Value};
    let dims = [Value::DimParam("N".into()), Value::DimValue(i64::try_from(width).unwrap())];
    let dim = dims.into_iter().map(|value| Dimension { value: Some(value), ..Default::default() }).collect();
    let tensor =
        type_proto::Tensor { elem_type: tensor_proto::DataType::Float as i32, shape: Some(TensorShapeProto { dim }) };
    let r#type = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() };
    ValueInfoProto { name: name.into(), r#type: Some(r#type), ..Default::default() }
}
