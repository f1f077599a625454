//! Small ONNX models, built by hand. Versions differ in their answers, so that a test sees which one answered.

use prost::Message;
use std::path::Path;
use tract_onnx::pb::{
    self, AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto,
    TypeProto, ValueInfoProto, attribute_proto, tensor_shape_proto, type_proto,
};

const FLOAT: i32 = pb::tensor_proto::DataType::Float as i32;
const INT64: i32 = pb::tensor_proto::DataType::Int64 as i32;
const BOOL: i32 = pb::tensor_proto::DataType::Bool as i32;

/// `x` FP32 [N,width] → `y` FP32 [N,1], every element `answer`. `weights` more floats make the model larger.
pub fn answering(answer: f32, width: i64, weights: usize) -> Vec<u8> {
    let zero = vec![0.0f32; usize::try_from(width).unwrap()];
    let mut nodes = vec![node("MatMul", &["x", "zero"], &["nothing"]), node("Add", &["nothing", "answer"], &["sum"])];
    let mut initializers = vec![tensor("zero", &[width, 1], &zero), tensor("answer", &[1], &[answer])];
    if weights > 0 {
        // [N,1] × [1,weights] → maximum → times zero: adds nothing, but no optimiser can remove it.
        let ballast: Vec<f32> = (0..weights).map(|i| (i % 7) as f32 * 0.25).collect();
        initializers.push(tensor("ballast", &[1, i64::try_from(weights).unwrap()], &ballast));
        initializers.push(tensor("zero_factor", &[1], &[0.0]));
        nodes.push(node("MatMul", &["nothing", "ballast"], &["products"]));
        let mut reduce = node("ReduceMax", &["products"], &["maximum"]);
        reduce.attribute.push(ints("axes", &[1]));
        nodes.push(reduce);
        nodes.push(node("Mul", &["maximum", "zero_factor"], &["no_change"]));
        nodes.push(node("Add", &["sum", "no_change"], &["y"]));
    } else {
        nodes.push(node("Identity", &["sum"], &["y"]));
    }
    model(nodes, initializers, vec![value("x", &[None, Some(width)])], vec![value("y", &[None, Some(1)])])
}

/// `x` FP32 [N,2] → `probabilities` FP32 [N,2]: those of the second class follow the sum of `x` times the weights (softmax).
pub fn two_classes(weights: [f32; 2]) -> Vec<u8> {
    let matrix = [0.0, weights[0], 0.0, weights[1]];
    model(
        vec![node("MatMul", &["x", "weights"], &["scores"]), node("Softmax", &["scores"], &["probabilities"])],
        vec![tensor("weights", &[2, 2], &matrix)],
        vec![value("x", &[None, Some(2)])],
        vec![value("probabilities", &[None, Some(2)])],
    )
}

/// `x` FP32 [N,2] → `y` FP32 [N,2]: `x` times a factor.
pub fn scaling(factor: f32) -> Vec<u8> {
    model(
        vec![node("Mul", &["x", "factor"], &["y"])],
        vec![tensor("factor", &[1], &[factor])],
        vec![value("x", &[None, Some(2)])],
        vec![value("y", &[None, Some(2)])],
    )
}

/// `x` FP32 [N,2] → `y` FP32 [N,2]: `x` times `factor` plus `shift`, both FP32 [1] and optional: 2 and 0.5 where a request gives none.
pub fn adjustable() -> Vec<u8> {
    model(
        vec![node("Mul", &["x", "factor"], &["product"]), node("Add", &["product", "shift"], &["y"])],
        vec![tensor("factor", &[1], &[2.0]), tensor("shift", &[1], &[0.5])],
        vec![value("factor", &[Some(1)]), value("x", &[None, Some(2)]), value("shift", &[Some(1)])],
        vec![value("y", &[None, Some(2)])],
    )
}

/// `x` FP32 [N,2] → `y` FP32 [N,2]: `x`, with `off` added to the first element of each row where it is above `threshold`.
pub fn off_above(threshold: f32, off: f32) -> Vec<u8> {
    let mut cast = node("Cast", &["is_above"], &["one_or_zero"]);
    cast.attribute.push(int("to", i64::from(FLOAT)));
    model(
        vec![
            node("Greater", &["x", "thresholds"], &["is_above"]),
            cast,
            node("Mul", &["one_or_zero", "off"], &["offset"]),
            node("Add", &["x", "offset"], &["y"]),
        ],
        vec![tensor("thresholds", &[2], &[threshold, f32::MAX]), tensor("off", &[1], &[off])],
        vec![value("x", &[None, Some(2)])],
        vec![value("y", &[None, Some(2)])],
    )
}

/// `x` FP32 [N,2] → `y` FP32 [N,2]: `x` itself. A run fails when an element is not from 0 to `most`, because each is looked up
/// in a table of that size.
pub fn up_to(most: u8) -> Vec<u8> {
    let mut to_index = node("Cast", &["x"], &["index"]);
    to_index.attribute.push(int("to", pb::tensor_proto::DataType::Int64 as i64));
    let table = vec![0.0; usize::from(most) + 1];
    model(
        vec![to_index, node("Gather", &["table", "index"], &["nothing"]), node("Add", &["x", "nothing"], &["y"])],
        vec![tensor("table", &[i64::from(most) + 1], &table)],
        vec![value("x", &[None, Some(2)])],
        vec![value("y", &[None, Some(2)])],
    )
}

/// `x` FP32 [N,2] → `y` FP32 [N,2]: each element looked up in a table of `rows` zeros, which takes four bytes a row and no time.
pub fn looking_up(rows: usize) -> Vec<u8> {
    let mut to_index = node("Cast", &["x"], &["index"]);
    to_index.attribute.push(int("to", pb::tensor_proto::DataType::Int64 as i64));
    model(
        vec![to_index, node("Gather", &["table", "index"], &["y"])],
        vec![tensor("table", &[i64::try_from(rows).unwrap()], &vec![0.0; rows])],
        vec![value("x", &[None, Some(2)])],
        vec![value("y", &[None, Some(2)])],
    )
}

/// `x` FP32 [N,2] → `y` FP32 [N,2]: `x` itself. The engine fails when an element is larger than `most`, because the graph then makes a
/// list of more numbers than any machine has memory for: an engine failure, not a value that it refuses.
pub fn out_of_memory_above(most: u8) -> Vec<u8> {
    let (x, y) = (value("x", &[None, Some(2)]), value("y", &[None, Some(2)]));
    out_of_memory("x", most, x, y)
}

/// The same for `x` FP32 [N,width] → `y` FP32 scalar: the largest element of `x`.
pub fn largest_or_out_of_memory_above(most: u8, width: i64) -> Vec<u8> {
    out_of_memory("largest", most, value("x", &[None, Some(width)]), value("y", &[]))
}

/// `y` is the value of this name.
fn out_of_memory(answer: &str, most: u8, x: ValueInfoProto, y: ValueInfoProto) -> Vec<u8> {
    let with = |mut node: NodeProto, name: &str, i: i64| {
        node.attribute.push(int(name, i));
        node
    };
    model(
        vec![
            with(node("ReduceMax", &["x"], &["largest"]), "keepdims", 0),
            node("Greater", &["largest", "most"], &["is_above"]),
            with(node("Cast", &["is_above"], &["one_or_zero"]), "to", i64::from(FLOAT)),
            node("Mul", &["one_or_zero", "far_too_many"], &["more"]),
            node("Add", &["more", "one"], &["length"]),
            with(node("Cast", &["length"], &["end"]), "to", pb::tensor_proto::DataType::Int64 as i64),
            with(node("Cast", &["zero"], &["from"]), "to", pb::tensor_proto::DataType::Int64 as i64),
            with(node("Cast", &["one"], &["by"]), "to", pb::tensor_proto::DataType::Int64 as i64),
            node("Range", &["from", "end", "by"], &["list"]),
            with(node("Cast", &["list"], &["numbers"]), "to", i64::from(FLOAT)),
            with(node("ReduceMin", &["numbers"], &["nothing"]), "keepdims", 0),
            node("Add", &[answer, "nothing"], &["y"]),
        ],
        vec![
            tensor("most", &[], &[f32::from(most)]),
            tensor("far_too_many", &[], &[1e15]),
            tensor("zero", &[], &[0.0]),
            tensor("one", &[], &[1.0]),
        ],
        vec![x],
        vec![y],
    )
}

/// `x` FP32 [N,2] → `y` FP32 [N,2]: `x` itself, after a run of fixed length: a chain of products of square matrices. They depend on all rows, so that
/// nothing is computed before and each request runs alone.
pub fn working(side: usize, products: usize) -> Vec<u8> {
    let with = |mut node: NodeProto, name: &str, i: i64| {
        node.attribute.push(int(name, i));
        node
    };
    // Small enough for no sum to overflow.
    let matrix: Vec<f32> = (0..side * side).map(|i| (i % 7) as f32 * 1e-4).collect();
    let mut nodes = vec![
        with(node("ReduceMax", &["x"], &["largest"]), "keepdims", 0),
        node("Mul", &["matrix", "largest"], &["product0"]),
    ];
    for i in 0..products {
        nodes.push(node("MatMul", &[&format!("product{i}"), "matrix"], &[&format!("product{}", i + 1)]));
    }
    let last = format!("product{products}");
    nodes.push(with(node("ReduceMin", &[&last], &["least"]), "keepdims", 0));
    nodes.push(node("Mul", &["least", "zero"], &["nothing"]));
    nodes.push(node("Add", &["x", "nothing"], &["y"]));
    let side = i64::try_from(side).unwrap();
    model(
        nodes,
        vec![tensor("matrix", &[side, side], &matrix), tensor("zero", &[], &[0.0])],
        vec![value("x", &[None, Some(2)])],
        vec![value("y", &[None, Some(2)])],
    )
}

/// `x` FP32 [N,2] → `y` FP32 [N,2]: the softmax of each column over all rows, so that rows depend on each other.
pub fn softmax_over_rows() -> Vec<u8> {
    let mut softmax = node("Softmax", &["x"], &["y"]);
    softmax.attribute.push(int("axis", 0));
    model(vec![softmax], Vec::new(), vec![value("x", &[None, Some(2)])], vec![value("y", &[None, Some(2)])])
}

/// `x` FP32 [1,2] → `y` FP32 [1,2]: `x` itself, after as many turns of a loop as the larger element says. A turn takes some
/// microseconds.
pub fn looping() -> Vec<u8> {
    let boolean = pb::tensor_proto::DataType::Bool as i32;
    let body = GraphProto {
        name: "body".into(),
        node: vec![node("Identity", &["go_on"], &["goes_on"]), node("Add", &["sum", "nothing"], &["next_sum"])],
        input: vec![
            typed("turn", pb::tensor_proto::DataType::Int64 as i32, &[]),
            typed("go_on", boolean, &[]),
            value("sum", &[Some(1), Some(2)]),
        ],
        output: vec![typed("goes_on", boolean, &[]), value("next_sum", &[Some(1), Some(2)])],
        ..Default::default()
    };
    let mut turns = node("Cast", &["most"], &["turns"]);
    turns.attribute.push(int("to", pb::tensor_proto::DataType::Int64 as i64));
    let mut most = node("ReduceMax", &["x"], &["most"]);
    most.attribute.push(int("keepdims", 0));
    let mut repeat = node("Loop", &["turns", "", "x"], &["y"]);
    repeat.attribute.push(AttributeProto {
        name: "body".into(),
        g: Some(body),
        r#type: attribute_proto::AttributeType::Graph as i32,
        ..Default::default()
    });
    model(
        vec![most, turns, repeat],
        vec![tensor("nothing", &[1], &[0.0])],
        vec![value("x", &[Some(1), Some(2)])],
        vec![value("y", &[Some(1), Some(2)])],
    )
}

/// `shape` INT64 [1] → `y` FP32 [N]: as many zeros as `shape` says.
pub fn zeros() -> Vec<u8> {
    model(
        vec![node("ConstantOfShape", &["shape"], &["y"])],
        Vec::new(),
        vec![typed("shape", pb::tensor_proto::DataType::Int64 as i32, &[Some(1)])],
        vec![value("y", &[None])],
    )
}

/// `end` INT64 [] → `y` INT64 [N]: the numbers from `end` down to 1 in steps of 5.
pub fn counting_down() -> Vec<u8> {
    let integer = pb::tensor_proto::DataType::Int64;
    let cast = |from: &str, to: &str| {
        let mut cast = node("Cast", &[from], &[to]);
        cast.attribute.push(int("to", integer as i64));
        cast
    };
    model(
        vec![cast("zero", "last"), cast("five", "by"), node("Range", &["end", "last", "by"], &["y"])],
        vec![tensor("zero", &[], &[0.0]), tensor("five", &[], &[-5.0])],
        vec![typed("end", integer as i32, &[])],
        vec![typed("y", integer as i32, &[None])],
    )
}

/// Copies one [N,2] input of every datatype: `bool` → `bool_out`, `uint8` → `uint8_out`, … `string` → `string_out`.
pub fn echoing_every_type() -> Vec<u8> {
    use pb::tensor_proto::DataType as T;
    let types = [
        ("bool", T::Bool),
        ("uint8", T::Uint8),
        ("uint16", T::Uint16),
        ("uint32", T::Uint32),
        ("uint64", T::Uint64),
        ("int8", T::Int8),
        ("int16", T::Int16),
        ("int32", T::Int32),
        ("int64", T::Int64),
        ("fp16", T::Float16),
        ("fp32", T::Float),
        ("fp64", T::Double),
        ("string", T::String),
    ];
    let out = |name: &str| format!("{name}_out");
    let nodes = types.iter().map(|(name, _)| node("Identity", &[name], &[&out(name)])).collect();
    let dims = [None, Some(2)];
    let inputs = types.iter().map(|(name, t)| typed(name, *t as i32, &dims)).collect();
    let outputs = types.iter().map(|(name, t)| typed(&out(name), *t as i32, &dims)).collect();
    model(nodes, Vec::new(), inputs, outputs)
}

/// `island` string [N,1], `mass` FP32 [N,1], `year` INT64 [N] and `bill` FP32 [N,2] → the same as `island_out` and so on: rows of a table.
pub fn echoing_columns() -> Vec<u8> {
    use pb::tensor_proto::DataType as T;
    let columns = [
        ("island", T::String, vec![None, Some(1)]),
        ("mass", T::Float, vec![None, Some(1)]),
        ("year", T::Int64, vec![None]),
        ("bill", T::Float, vec![None, Some(2)]),
    ];
    let out = |name: &str| format!("{name}_out");
    let nodes = columns.iter().map(|(name, ..)| node("Identity", &[name], &[&out(name)])).collect();
    let inputs = columns.iter().map(|(name, t, dims)| typed(name, *t as i32, dims)).collect();
    let outputs = columns.iter().map(|(name, t, dims)| typed(&out(name), *t as i32, dims)).collect();
    model(nodes, Vec::new(), inputs, outputs)
}

/// `x` FP32 [T,N,4] → `y` FP32 [T,1,N,5]: an LSTM. ONNX Runtime aborts the process where T or N is 0.
pub fn lstm() -> Vec<u8> {
    let mut lstm = node("LSTM", &["x", "w", "r"], &["y"]);
    lstm.attribute.push(int("hidden_size", 5));
    let ones = |name: &str, dims: &[i64]| {
        tensor(name, dims, &vec![1.0; usize::try_from(dims.iter().product::<i64>()).unwrap()])
    };
    model(
        vec![lstm],
        vec![ones("w", &[1, 20, 4]), ones("r", &[1, 20, 5])],
        vec![symbolic("x", FLOAT, &["T", "N", "4"])],
        vec![symbolic("y", FLOAT, &["T", "1", "N", "5"])],
    )
}

/// `x` FP32 [N,3,L] → `y` FP32 [N,3,L]: an `InstanceNormalization`. Its kernel looks at the first element, also where there is none.
pub fn instance_normalization() -> Vec<u8> {
    model(
        vec![node("InstanceNormalization", &["x", "scale", "bias"], &["y"])],
        vec![tensor("scale", &[3], &[1.0; 3]), tensor("bias", &[3], &[0.0; 3])],
        vec![symbolic("x", FLOAT, &["N", "3", "L"])],
        vec![symbolic("y", FLOAT, &["N", "3", "L"])],
    )
}

/// A model of about 100 bytes that needs more memory than there is: its input declares 2,147,483,647 elements, and each is an extent.
pub fn of_unbounded_memory() -> Vec<u8> {
    let int64 = pb::tensor_proto::DataType::Int64 as i32;
    model(
        vec![node("ConstantOfShape", &["shape"], &["y"])],
        Vec::new(),
        vec![typed("shape", int64, &[Some(i64::from(i32::MAX))])],
        vec![symbolic("y", FLOAT, &["N"])],
    )
}

/// `x` FP32 [N,2] → `y` FP32 [N,2]: `x`, by functions that call functions twice, so that inlining them takes 2^`depth` steps.
pub fn nested_functions(depth: usize) -> Vec<u8> {
    let call = |callee: usize, from: &str, to: &str| NodeProto {
        domain: "functions".into(),
        ..node(&format!("f{callee}"), &[from], &[to])
    };
    let opset = |domain: &str, version| OperatorSetIdProto { domain: domain.into(), version };
    let function = |number: usize| pb::FunctionProto {
        name: Some(format!("f{number}")),
        domain: Some("functions".into()),
        input: vec!["x".into()],
        output: vec!["y".into()],
        node: match number {
            0 => vec![node("Identity", &["x"], &["y"])],
            n => vec![call(n - 1, "x", "between"), call(n - 1, "between", "y")],
        },
        opset_import: vec![opset("", 13), opset("functions", 1)],
        ..Default::default()
    };
    let outer = model(
        vec![call(depth, "x", "y")],
        Vec::new(),
        vec![value("x", &[None, Some(2)])],
        vec![value("y", &[None, Some(2)])],
    );
    let mut outer = ModelProto::decode(&*outer).unwrap();
    outer.ir_version = 8;
    outer.opset_import.push(opset("functions", 1));
    outer.functions = (0..=depth).map(function).collect();
    outer.encode_to_vec()
}

/// `x` FP32 [N,4] → `y` FP32 [N,4]: multiplies `x` by one until its largest element is above 1e30, which no
/// generated request is.
pub fn never_ending() -> Vec<u8> {
    let dims = [None, Some(4)];
    let scalar = |name: &str, datatype: pb::tensor_proto::DataType| typed(name, datatype as i32, &[]);
    let mut largest = node("ReduceMax", &["sum"], &["largest"]);
    largest.attribute.push(int("keepdims", 0));
    let body = GraphProto {
        name: "body".into(),
        node: vec![
            node("Mul", &["sum_before", "one"], &["sum"]),
            largest,
            node("Less", &["largest", "far_away"], &["again"]),
        ],
        input: vec![
            scalar("i", pb::tensor_proto::DataType::Int64),
            scalar("again_before", pb::tensor_proto::DataType::Bool),
            value("sum_before", &dims),
        ],
        output: vec![scalar("again", pb::tensor_proto::DataType::Bool), value("sum", &dims)],
        initializer: vec![tensor("far_away", &[], &[1e30]), tensor("one", &[], &[1.0])],
        ..Default::default()
    };
    let mut repeat = node("Loop", &["", "go", "x"], &["y"]);
    repeat.attribute.push(AttributeProto {
        name: "body".into(),
        g: Some(body),
        r#type: attribute_proto::AttributeType::Graph as i32,
        ..Default::default()
    });
    let go = TensorProto {
        name: "go".into(),
        data_type: pb::tensor_proto::DataType::Bool as i32,
        raw_data: vec![1],
        ..Default::default()
    };
    model(vec![repeat], vec![go], vec![value("x", &dims)], vec![value("y", &dims)])
}

/// `x` FP32 [N,2] → `y` FP32 [N,2]: twice `x`, by the custom operator of `twice.c`.
pub fn twice() -> Vec<u8> {
    let mut operator = node("Twice", &["x"], &["y"]);
    operator.domain = "test".into();
    let dims = [None, Some(2)];
    let model = model(vec![operator], Vec::new(), vec![value("x", &dims)], vec![value("y", &dims)]);
    let mut model = ModelProto::decode(&*model).unwrap();
    model.opset_import.push(OperatorSetIdProto { domain: "test".into(), version: 1 });
    model.encode_to_vec()
}

/// `x` FP32 [N,2] → `y` FP32 [N,2]: `x` plus numbers from 0 to 1 that are drawn anew each time.
pub fn random() -> Vec<u8> {
    let dims = [None, Some(2)];
    let nodes = vec![node("RandomUniformLike", &["x"], &["drawn"]), node("Add", &["x", "drawn"], &["y"])];
    model(nodes, Vec::new(), vec![value("x", &dims)], vec![value("y", &dims)])
}

/// A model with an operator that no engine has.
pub fn unknown_operator() -> Vec<u8> {
    model(
        vec![node("FrobnicateTwice", &["x"], &["y"])],
        Vec::new(),
        vec![value("x", &[None, Some(2)])],
        vec![value("y", &[None, Some(2)])],
    )
}

/// `n` INT64 scalar → `count` FP32 scalar: counts to `n` in a `Loop`.
pub fn counting() -> Vec<u8> {
    let body = GraphProto {
        name: "body".into(),
        node: vec![node("Add", &["before", "one"], &["after"]), node("Identity", &["go_on"], &["goes_on"])],
        initializer: vec![tensor("one", &[], &[1.0])],
        input: vec![typed("i", INT64, &[]), typed("go_on", BOOL, &[]), value("before", &[])],
        output: vec![typed("goes_on", BOOL, &[]), value("after", &[])],
        ..Default::default()
    };
    let mut counted = node("Loop", &["n", "go", "start"], &["count"]);
    counted.attribute.push(AttributeProto {
        name: "body".into(),
        g: Some(body),
        r#type: attribute_proto::AttributeType::Graph as i32,
        ..Default::default()
    });
    let go = TensorProto { name: "go".into(), data_type: BOOL, raw_data: vec![1], ..Default::default() };
    let inputs = vec![typed("n", INT64, &[])];
    model(vec![counted], vec![go, tensor("start", &[], &[0.0])], inputs, vec![value("count", &[])])
}

/// `n` INT64 scalar → `kept` INT64 scalar: keeps the boxes that do not overlap, of `n` boxes that do not. One node does it, in a time that
/// grows with the square of `n`.
pub fn keeping_boxes() -> Vec<u8> {
    let with = |mut node: NodeProto, name: &str, i: i64| {
        node.attribute.push(int(name, i));
        node
    };
    let scalar = |name: &str, n: i64| TensorProto {
        name: name.into(),
        data_type: INT64,
        raw_data: n.to_le_bytes().to_vec(),
        ..Default::default()
    };
    let list = |name: &str, n: i64| TensorProto { dims: vec![1], ..scalar(name, n) };
    model(
        vec![
            node("Range", &["zero", "n", "one"], &["numbers"]),
            with(node("Cast", &["numbers"], &["low"]), "to", i64::from(FLOAT)),
            node("Add", &["low", "half"], &["high"]),
            node("Unsqueeze", &["low", "axis"], &["low1"]),
            node("Unsqueeze", &["high", "axis"], &["high1"]),
            with(node("Concat", &["low1", "low1", "high1", "high1"], &["corners"]), "axis", 1),
            node("Unsqueeze", &["corners", "first"], &["boxes"]),
            node("Neg", &["low"], &["score"]),
            node("Unsqueeze", &["score", "both"], &["scores"]),
            node("Unsqueeze", &["n", "first"], &["most"]),
            node("NonMaxSuppression", &["boxes", "scores", "most", "overlap"], &["selected"]),
            node("Shape", &["selected"], &["shape"]),
            with(node("Gather", &["shape", "zero"], &["kept"]), "axis", 0),
        ],
        vec![
            scalar("zero", 0),
            scalar("one", 1),
            tensor("half", &[], &[0.5]),
            list("axis", 1),
            list("first", 0),
            TensorProto {
                name: "both".into(),
                dims: vec![2],
                data_type: INT64,
                raw_data: [0i64, 1].iter().flat_map(|i| i.to_le_bytes()).collect(),
                ..Default::default()
            },
            tensor("overlap", &[1], &[0.5]),
        ],
        vec![typed("n", INT64, &[])],
        vec![typed("kept", INT64, &[])],
    )
}

/// `x` FP32 [A,B], `y` FP32 [B,C] → `z` FP32 [A,C]: their product. Two requests with as many elements may differ a thousand times in cost.
pub fn product() -> Vec<u8> {
    let matrix = |name: &str| ValueInfoProto {
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                elem_type: FLOAT,
                shape: Some(TensorShapeProto { dim: vec![tensor_shape_proto::Dimension::default(); 2] }),
            })),
            ..Default::default()
        }),
        name: name.into(),
        ..Default::default()
    };
    model(vec![node("MatMul", &["x", "y"], &["z"])], vec![], vec![matrix("x"), matrix("y")], vec![matrix("z")])
}

/// Installs a version in one step: writes a temporary directory and renames it.
pub fn install(models: &Path, model: &str, version: u64, bytes: &[u8]) {
    let temporary = models.join(model).join(format!(".{version}.tmp"));
    std::fs::create_dir_all(&temporary).unwrap();
    std::fs::write(temporary.join("model.onnx"), bytes).unwrap();
    std::fs::rename(&temporary, models.join(model).join(version.to_string())).unwrap();
}

fn model(
    node: Vec<NodeProto>,
    initializer: Vec<TensorProto>,
    input: Vec<ValueInfoProto>,
    output: Vec<ValueInfoProto>,
) -> Vec<u8> {
    let graph = GraphProto { name: "test".into(), node, initializer, input, output, ..Default::default() };
    let opset_import = vec![OperatorSetIdProto { domain: String::new(), version: 13 }];
    ModelProto { ir_version: 7, opset_import, graph: Some(graph), ..Default::default() }.encode_to_vec()
}

fn node(op: &str, input: &[&str], output: &[&str]) -> NodeProto {
    NodeProto {
        op_type: op.into(),
        input: input.iter().map(|s| (*s).to_owned()).collect(),
        output: output.iter().map(|s| (*s).to_owned()).collect(),
        name: format!("{op}_{}", output[0]),
        ..Default::default()
    }
}

fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        ints: values.to_vec(),
        r#type: attribute_proto::AttributeType::Ints as i32,
        ..Default::default()
    }
}

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        i: value,
        r#type: attribute_proto::AttributeType::Int as i32,
        ..Default::default()
    }
}

fn tensor(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type: FLOAT,
        raw_data: bytemuck::cast_slice::<f32, u8>(values).to_vec(),
        ..Default::default()
    }
}

fn value(name: &str, dims: &[Option<i64>]) -> ValueInfoProto {
    typed(name, FLOAT, dims)
}

/// Dimensions as text: a number, or a symbol.
fn symbolic(name: &str, elem_type: i32, dims: &[&str]) -> ValueInfoProto {
    let mut value = typed(name, elem_type, &vec![None; dims.len()]);
    if let Some(type_proto::Value::TensorType(tensor)) = value.r#type.as_mut().and_then(|t| t.value.as_mut()) {
        for (dim, text) in tensor.shape.iter_mut().flat_map(|shape| &mut shape.dim).zip(dims) {
            dim.value = Some(match text.parse() {
                Ok(n) => tensor_shape_proto::dimension::Value::DimValue(n),
                Err(_) => tensor_shape_proto::dimension::Value::DimParam((*text).to_owned()),
            });
        }
    }
    value
}

fn typed(name: &str, elem_type: i32, dims: &[Option<i64>]) -> ValueInfoProto {
    let dim = dims
        .iter()
        .map(|d| tensor_shape_proto::Dimension {
            value: Some(match d {
                Some(n) => tensor_shape_proto::dimension::Value::DimValue(*n),
                None => tensor_shape_proto::dimension::Value::DimParam("N".into()),
            }),
            ..Default::default()
        })
        .collect();
    let tensor_type = type_proto::Tensor { elem_type, shape: Some(TensorShapeProto { dim }) };
    ValueInfoProto {
        name: name.into(),
        r#type: Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor_type)), ..Default::default() }),
        ..Default::default()
    }
}
