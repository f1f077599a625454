//! Finds the arrays or columns of a file that belong to the tensors of a signature.

use super::table::{Column, Table};
use super::values::{Array, Unfit, Values};
use super::{Arrays, MAX_BYTES, Wanted};
use crate::model::{Dim, NamedTensor, TensorSpec, quoted};
use crate::tensor::{Data, Shape, Tensor};

/// The tensors of named arrays.
pub(super) fn arrays(mut arrays: Vec<Array>, wanted: &Wanted) -> Result<Arrays, String> {
    let Wanted { side, specs, .. } = wanted;
    if let ([array], [spec]) = (arrays.as_mut_slice(), specs) {
        // The only array is meant for the only tensor, whatever its name is.
        array.name = spec.name.to_string();
    }
    if let Some(unknown) = arrays.iter().find(|array| !specs.iter().any(|spec| *spec.name == *array.name)) {
        let found = match unknown.name.as_str() {
            "" => "it has one array without a name".to_owned(),
            name => format!("array {} is not an {side} of the model", quoted(name)),
        };
        return Err(format!("{found}; the model has the {side}s {}", listed(specs.iter().map(|spec| &*spec.name))));
    }
    let mut tensors = Vec::new();
    for (index, spec) in specs.iter().enumerate() {
        match arrays.iter().find(|array| *spec.name == *array.name) {
            Some(array) => {
                let shape =
                    shape_of(spec, &array.shape).map_err(|why| format!("array {}: {why}", quoted(&spec.name)))?;
                tensors.push(named(spec, shape, &array.values, "array")?);
            }
            None if index < wanted.required => {
                let found = listed(arrays.iter().map(|array| array.name.as_str()));
                return Err(format!("there is no array for {side} {}; found {found}", quoted(&spec.name)));
            }
            None => {}
        }
    }
    finish(tensors, Vec::new(), wanted)
}

/// The tensors of a table. A tensor is a column with its name, columns `NAME[0]`, `NAME[1]`, …, the columns that `element_names` gives, or, for an only
/// tensor, all columns of a file that has as many as it needs.
pub(super) fn table(table: &mut dyn Table, wanted: &Wanted) -> Result<Arrays, String> {
    let names = table.names().to_vec();
    if let Some(name) = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)).map(|(_, name)| name) {
        return Err(format!("column {} is there more than once", quoted(name)));
    }
    let place = |name: &str| names.iter().position(|known| known == name);
    let (mut tensors, mut notes) = (Vec::new(), Vec::new());
    for (index, spec) in wanted.specs.iter().enumerate() {
        let elements: Vec<usize> = (0..).map_while(|i| place(&format!("{}[{i}]", spec.name))).collect();
        let by_name = place(&spec.name).or_else(|| place(&format!("{}s.{}", wanted.side, spec.name)));
        let is_only = wanted.specs.len() == 1;
        let given: Option<Vec<usize>> = wanted.element_names.iter().map(|name| place(name)).collect();
        let chosen = if let Some(column) = by_name {
            vec![column]
        } else if !elements.is_empty() {
            elements
        } else if let Some(given) = given.filter(|given| is_only && !given.is_empty()) {
            given
        } else if is_only && width(spec).is_some_and(|width| width == names.len()) {
            if names.len() > 1 {
                notes.push(format!(
                    "{} {} takes the {} columns in the order of the file: {}",
                    wanted.side,
                    quoted(&spec.name),
                    names.len(),
                    listed(names.iter().map(String::as_str))
                ));
            }
            (0..names.len()).collect()
        } else if index < wanted.required {
            return Err(missing(spec, wanted, &names));
        } else {
            continue;
        };
        tensors.push(of_columns(table, spec, &chosen, &names)?);
    }
    finish(tensors, notes, wanted)
}

fn finish(tensors: Vec<NamedTensor>, notes: Vec<String>, wanted: &Wanted) -> Result<Arrays, String> {
    if tensors.is_empty() {
        let known = listed(wanted.specs.iter().map(|spec| &*spec.name));
        return Err(format!("it has none of the {}s of the model: {known}", wanted.side));
    }
    Ok(Arrays { tensors, notes })
}

fn missing(spec: &TensorSpec, wanted: &Wanted, names: &[String]) -> String {
    let own = format!("a column {} or columns {}, …", quoted(&spec.name), quoted(&format!("{}[0]", spec.name)));
    let others = match wanted.element_names {
        [] => String::new(),
        names => format!(", or those of feature_names ({})", listed(names.iter().map(String::as_str))),
    };
    let expected = own + &others;
    let found = listed(names.iter().map(String::as_str));
    format!("there is no column for {} {spec}: expected {expected}; found {found}", wanted.side)
}

/// The tensor of these columns, side by side.
fn of_columns(
    table: &mut dyn Table,
    spec: &TensorSpec,
    columns: &[usize],
    names: &[String],
) -> Result<NamedTensor, String> {
    let at = |column: usize, message: String| format!("column {}: {message}", quoted(&names[column]));
    if let [column] = columns {
        let Column { values, list } = table.column(*column).map_err(|message| at(*column, message))?;
        let rows = list.map_or(values.len(), |n| values.len().checked_div(n).unwrap_or(0));
        let shape = match list {
            Some(n) => list_shape(spec, rows, n),
            None => vec![rows],
        };
        let shape = shape_of(spec, &shape).map_err(|why| at(*column, why))?;
        let data =
            values.convert(spec.datatype).map_err(|unfit| at(*column, unfit_words(spec, &unfit, list.unwrap_or(1))))?;
        return tensor(spec, shape, data);
    }
    let mut parts = Vec::new();
    for column in columns {
        let Column { values, list } = table.column(*column).map_err(|message| at(*column, message))?;
        if list.is_some() {
            return Err(at(*column, "expected single values, found lists".to_owned()));
        }
        let data = values.convert(spec.datatype).map_err(|unfit| at(*column, unfit_words(spec, &unfit, 1)))?;
        let rows = data.len();
        // Every column has as many rows as the file.
        parts.push(Tensor::new(Shape::new(&[rows, 1]), data).map_err(|e| at(*column, e.to_string()))?);
    }
    let rows = parts.first().map_or(0, |part| part.shape()[0]);
    let shape = shape_of(spec, &list_shape(spec, rows, columns.len()))
        .map_err(|why| format!("columns {}: {why}", listed(columns.iter().map(|i| names[*i].as_str()))))?;
    let data = interleaved(&parts, rows).ok_or_else(|| format!("its columns have more than {MAX_BYTES} bytes"))?;
    tensor(spec, shape, data)
}

/// Row-major elements of columns of `rows` elements each.
fn interleaved(columns: &[Tensor], rows: usize) -> Option<Data> {
    let total = columns.iter().map(Tensor::size).sum::<usize>();
    if total > MAX_BYTES {
        return None;
    }
    let first = columns.first()?;
    macro_rules! interleave {
        ($($kind:ident),*) => {
            match first.data() {
                $(Data::$kind(_) => {
                    let parts: Option<Vec<_>> = columns
                        .iter()
                        .map(|column| match column.data() {
                            Data::$kind(elements) => Some(elements),
                            _ => None,
                        })
                        .collect();
                    let parts = parts?;
                    let row = |row: usize| parts.iter().map(move |part| part[row].clone());
                    Data::$kind((0..rows).flat_map(row).collect::<Vec<_>>().into())
                })*
            }
        };
    }
    Some(interleave!(Bool, Uint8, Uint16, Uint32, Uint64, Int8, Int16, Int32, Int64, Fp16, Fp32, Fp64, Bytes))
}

/// How many elements a row of the tensor has; `None` where that is not fixed.
fn width(spec: &TensorSpec) -> Option<usize> {
    let dims = spec.dims.as_deref()?;
    dims.get(1..)?.iter().try_fold(1usize, |n, dim| match dim {
        Dim::Fixed(extent) => n.checked_mul(*extent),
        Dim::Free(_) => None,
    })
}

/// The shape of rows of `n` elements each: that of the tensor, where its rows have as many.
fn list_shape(spec: &TensorSpec, rows: usize, n: usize) -> Vec<usize> {
    let inner = spec.dims.as_deref().and_then(|dims| dims.get(1..)).filter(|_| width(spec) == Some(n));
    let inner = inner.unwrap_or_default().iter().map(|dim| match dim {
        Dim::Fixed(extent) => *extent,
        Dim::Free(_) => n,
    });
    let inner: Vec<usize> = inner.collect();
    std::iter::once(rows).chain(if inner.is_empty() { vec![n] } else { inner }).collect()
}

/// The shape that an array has as this tensor. An axis of extent 1 at the end may be missing or too many.
fn shape_of(spec: &TensorSpec, shape: &[usize]) -> Result<Shape, String> {
    let Some(dims) = &spec.dims else { return Ok(Shape::new(shape)) };
    let mut fitted = shape.to_vec();
    if fitted.len() + 1 == dims.len() && dims.last() == Some(&Dim::Fixed(1)) {
        fitted.push(1);
    } else if fitted.len() == dims.len() + 1 && fitted.last() == Some(&1) {
        fitted.pop();
    }
    let fits = |(dim, extent): (&Dim, &usize)| !matches!(dim, Dim::Fixed(expected) if expected != extent);
    if fitted.len() != dims.len() || !dims.iter().zip(&fitted).all(fits) {
        return Err(format!("expected the shape of {spec}, found {}", Shape::new(shape)));
    }
    Ok(Shape::new(&fitted))
}

fn named(spec: &TensorSpec, shape: Shape, values: &Values, what: &str) -> Result<NamedTensor, String> {
    let width = shape.iter().skip(1).product();
    let at = |unfit: Unfit| format!("{what} {}: {}", quoted(&spec.name), unfit_words(spec, &unfit, width));
    let data = values.convert(spec.datatype).map_err(at)?;
    tensor(spec, shape, data)
}

fn tensor(spec: &TensorSpec, shape: Shape, data: Data) -> Result<NamedTensor, String> {
    let tensor = Tensor::new(shape, data).map_err(|e| format!("{}: {e}", quoted(&spec.name)))?;
    Ok(NamedTensor { name: spec.name.to_string(), tensor })
}

/// `width`: the elements of a row.
fn unfit_words(spec: &TensorSpec, unfit: &Unfit, width: usize) -> String {
    let width = width.max(1);
    let (row, element) = (unfit.index / width, unfit.index % width);
    let place = if width == 1 { format!("row {row}") } else { format!("row {row}, element {element}") };
    format!("{place}: expected a value of {}, found {}", spec.datatype, unfit.found)
}

/// At most 20 names.
fn listed<'n>(names: impl Iterator<Item = &'n str>) -> String {
    const SHOWN: usize = 20;
    let names: Vec<&str> = names.collect();
    let mut shown: Vec<String> = names.iter().take(SHOWN).map(|name| quoted(name)).collect();
    if names.len() > SHOWN {
        shown.push(format!("and {} more", names.len() - SHOWN));
    }
    if shown.is_empty() { "none".to_owned() } else { shown.join(", ") }
}
