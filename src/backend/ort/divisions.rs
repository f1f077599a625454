//! Learns where the engine's operators `Div` and `Mod` divide elements: makes them trap there, and remembers the instructions.

use super::library::Library;
use super::trap;
use ort::Error;
use ort::session::Session;
use ort::value::{PrimitiveTensorElementType, Tensor};
use std::fmt::Debug;
use std::sync::Once;

/// Longer than the vectors of any processor, so that each copy of the division is reached: in the unrolled part of a loop, and in the rest.
const LENGTH: usize = 19;

/// Learns the divisions of the library, once per process. Blocks until that is done.
pub(super) fn learn(library: &Library) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for operator in ["Div", "Mod"] {
            let learned = learn_type(library, operator, 6, i32::MIN, -1, 0, 1)
                .and_then(|()| learn_type(library, operator, 7, i64::MIN, -1, 0, 1));
            if let Err(error) = learned {
                tracing::warn!(operator, %error, "an integer division that traps ends the process: it is not known where the operator divides");
            }
        }
    });
}

/// `onnx_type`: `TensorProto.DataType`.
fn learn_type<T: PrimitiveTensorElementType + Copy + Debug + 'static>(
    library: &Library,
    operator: &str,
    onnx_type: u8,
    least: T,
    minus_one: T,
    zero: T,
    one: T,
) -> Result<(), Error> {
    let mut session = Session::builder(&library.environment)?
        .with_intra_threads(1)?
        .with_inter_threads(1)?
        .commit_from_memory(&model(operator, onnx_type))?;
    // Zero traps in old libraries; newer ones answer with an error.
    for (dividend, divisor) in [(least, minus_one), (one, zero)] {
        for at in 0..LENGTH {
            let with = |value: T| {
                let mut all = vec![one; LENGTH];
                all[at] = value;
                all
            };
            // The operator has code of its own for one number on either side.
            for (a, b) in
                [(with(dividend), with(divisor)), (vec![dividend], with(divisor)), (with(dividend), vec![divisor])]
            {
                let inputs = ort::inputs!["a" => Tensor::from_array(([a.len()], a))?, "b" => Tensor::from_array(([b.len()], b))?];
                // The outputs are those of a division that was skipped, or an error.
                trap::learning(|| drop(session.run(inputs)));
            }
        }
    }
    Ok(())
}

/// An ONNX file with one operator: inputs `a` and `b`, output `y`, all of one free dimension.
fn model(operator: &str, onnx_type: u8) -> Vec<u8> {
    // Protocol buffers: a field is its tag and its length, or its number. Everything here is shorter than 128 bytes.
    let field = |tag: u8, content: &[u8]| {
        let mut bytes = vec![tag << 3 | 2, u8::try_from(content.len()).expect("the file is short")];
        bytes.extend_from_slice(content);
        bytes
    };
    let number = |tag: u8, value: u8| vec![tag << 3, value];
    let value = |name: &str, dimension: &str| {
        let shape = field(1, &field(2, dimension.as_bytes()));
        let tensor = [number(1, onnx_type), field(2, &shape)].concat();
        [field(1, name.as_bytes()), field(2, &field(1, &tensor))].concat()
    };
    let node = [field(1, b"a"), field(1, b"b"), field(2, b"y"), field(4, operator.as_bytes())].concat();
    let graph = [
        field(1, &node),
        field(2, b"g"),
        field(11, &value("a", "n")),
        field(11, &value("b", "m")),
        field(12, &value("y", "k")),
    ]
    .concat();
    [number(1, 7), field(7, &graph), field(8, &number(2, 13))].concat()
}
