//! Metadata of the server and of a model.

use crate::codec::metadata::{model_json, server_json};
use crate::model::{Dim, Signature, TensorSpec};
use crate::tensor::DataType;

#[test]
fn model_metadata_has_inputs_and_outputs() {
    let spec = |name: &str, datatype, dims| TensorSpec { name: name.into(), datatype, dims: Some(dims) };
    let signature = Signature::new(
        vec![spec("x", DataType::Fp32, vec![Dim::Free(Some("N".into())), Dim::Fixed(2)])],
        vec![spec("y\"", DataType::Bytes, vec![])],
    );
    let versions = [1, 10].map(|v: u32| v.to_string().parse().unwrap());
    assert_eq!(
        model_json("m", &versions, "onnxruntime_onnx", &signature),
        concat!(
            r#"{"name":"m","versions":["1","10"],"platform":"onnxruntime_onnx","#,
            r#""inputs":[{"name":"x","datatype":"FP32","shape":[-1,2]}],"#,
            r#""outputs":[{"name":"y\"","datatype":"BYTES","shape":[]}]}"#
        )
    );
}

#[test]
fn server_metadata_has_the_extensions() {
    assert_eq!(
        server_json("0.1.0"),
        r#"{"name":"sluicegate","version":"0.1.0","extensions":["binary_tensor_data","model_configuration","statistics"]}"#
    );
}
