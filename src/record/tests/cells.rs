//! The values of columns, read from a frame.

use super::*;
use crate::columns::{Cell, ElementNames, resolve};
use crate::record::frame::{self, Kind};
use crate::record::view;

/// The cells of each row, in the order of `names`.
fn cells(
    about: &About,
    choice: &Choice,
    request: &Checked,
    answer: Option<&Answer>,
    names: &[&str],
) -> Vec<Vec<String>> {
    let fixture = Fixture::new(|_| {}, Box::new(RealDisk));
    let stream = fixture.log.stream(about, choice).unwrap();
    let prediction = prediction("a", request, answer.ok_or(Code::EngineFailed));
    let planned = Planned::new(&stream, &prediction).unwrap();
    let mut out = Vec::new();
    planned.write(&mut out, &planned.hash());
    let (kind, body) = frame::own_frames(&out).next().unwrap();
    assert_eq!(kind, Kind::Prediction);
    let view = view::read_prediction(body, &stream.inputs, &stream.outputs).unwrap();
    let column = |name: &&str| resolve(&about.signature, &ElementNames::default(), name).unwrap();
    let columns: Vec<_> = names.iter().map(column).collect();
    let shown = |row: usize, column: &_| match stream.cell(&view, column, row) {
        Cell::Text(text) => String::from_utf8_lossy(text).into_owned(),
        cell => format!("{cell:?}"),
    };
    (0..view.records()).map(|row| columns.iter().map(|column| shown(row, column)).collect()).collect()
}

#[test]
fn every_row_has_its_own_values() {
    let about = simple();
    let (request, answer) = rows(&about, 3);
    let names = ["x[0]", "x[1]", "name", "y"];
    let found = cells(&about, &Choice::default(), &request, Some(&answer), &names);
    assert_eq!(found[0], ["Number(0.0)", "Number(1.0)", "user-0", "Number(0.5)"]);
    assert_eq!(found[2], ["Number(4.0)", "Number(5.0)", "user-2", "Number(2.5)"]);
    let failed = cells(&about, &Choice::default(), &request, None, &names);
    assert_eq!(failed[2], ["Number(4.0)", "Number(5.0)", "user-2", "Missing"]);
}

#[test]
fn hidden_columns_stay_hidden() {
    let about = simple();
    let (request, answer) = rows(&about, 2);
    let choice = Choice {
        drop: ["inputs.name".to_owned()].into(),
        hash: ["inputs.x".to_owned(), "outputs.y".to_owned()].into(),
        ..Choice::default()
    };
    let found = cells(&about, &choice, &request, Some(&answer), &["x[0]", "name", "y"]);
    assert_eq!(found, vec![vec!["Hidden"; 3]; 2]);
    let masked = Choice { mask: vec![Mask::new("inputs.name", "user").unwrap()], ..Choice::default() };
    assert_eq!(cells(&about, &masked, &request, Some(&answer), &["name"]), [["****-0"], ["****-1"]]);
}

#[test]
fn a_record_of_a_whole_request_has_no_values_by_row() {
    let about = simple();
    let (request, _) = rows(&about, 3);
    let sum = answer(&about, vec![tensor(&[1], Data::Fp32(vec![9.0].into()))]);
    assert_eq!(cells(&about, &Choice::default(), &request, Some(&sum), &["x[0]", "y"]), [["Missing", "Missing"]]);
    let fixed = super::about(
        vec![spec("x", DataType::Int64, &[Dim::Fixed(2)])],
        vec![spec("y", DataType::Bool, &[]), spec("open", DataType::Fp32, &[FREE])],
    );
    let request = checked(&fixed, vec![tensor(&[2], Data::Int64(vec![5, 7].into()))]);
    let outputs =
        vec![tensor(&[], Data::Bool(vec![true])), tensor(&[2], Data::Fp32(vec![f32::NAN, f32::INFINITY].into()))];
    let found = cells(
        &fixed,
        &Choice::default(),
        &request,
        Some(&answer(&fixed, outputs)),
        &["x[1]", "y", "open[0]", "open[1]", "open[2]"],
    );
    assert_eq!(found, [["Number(7.0)", "Bool(true)", "Number(NaN)", "Number(inf)", "Missing"]]);
}
