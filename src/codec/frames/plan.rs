//! Which column of a table goes to which element of which input.

use super::{invalid, wrong};
use crate::codec::json::Reader;
use crate::codec::nested::{Buffer, ParseError};
use crate::codec::tfs::{Column, RULES};
use crate::columns::{ElementNames, Side};
use crate::model::{Dim, Failure, NamedTensor, Signature, TensorSpec, quoted};
use crate::tensor::{Shape, Tensor};
use std::collections::{HashMap, HashSet};
use std::ops::Deref;

/// A signature, with the names of elements from `model.toml`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Model<'s> {
    pub signature: &'s Signature,
    pub names: &'s ElementNames,
}

/// Where the values of a column go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// The column has the name of an input: each value is a row of it.
    Whole(usize),
    /// One element of the rows of an input.
    Element { input: usize, element: usize },
}

/// The targets of the columns of a table.
#[derive(Debug)]
pub(super) enum Targets {
    /// The elements of the only input, in their order. The number of columns.
    InOrder(usize),
    Named(Vec<Target>),
}

/// The values of a table while they are read, row by row.
#[derive(Debug)]
pub(super) struct Plan<'s> {
    targets: Targets,
    parts: Vec<Part<'s>>,
}

/// The values of one input.
#[derive(Debug)]
enum Part<'s> {
    Whole(Column<'s>),
    Elements(Elements<'s>),
}

#[derive(Debug)]
struct Elements<'s> {
    spec: &'s TensorSpec,
    buffer: Buffer,
    /// The elements of a row in the order in which their columns come. `None`: in their own order.
    order: Option<Vec<usize>>,
    /// The number of elements per row.
    width: usize,
}

// === impl Model ===

impl<'s> Model<'s> {
    /// The names of an input's elements; empty where there are none.
    pub(super) fn names_of(self, spec: &TensorSpec) -> &'s [String] {
        self.names.of(self.signature, Side::Inputs, spec)
    }

    /// The targets of columns with these names.
    ///
    /// # Errors
    /// For a name that means nothing or several things, and for one that is given twice.
    pub(super) fn targets<N: Deref<Target = str>>(self, columns: &[N]) -> Result<Targets, Failure> {
        let specs = self.signature.inputs();
        if let [only] = specs
            && self.names_of(only).is_empty()
            && !matches!(columns, [name] if **name == *only.name)
        {
            return Ok(Targets::InOrder(columns.len()));
        }
        let mut known: HashMap<&str, Option<Target>> = HashMap::new();
        for (input, spec) in specs.iter().enumerate() {
            for (element, name) in self.names_of(spec).iter().enumerate() {
                let target = Some(Target::Element { input, element });
                known.entry(name.as_str()).and_modify(|several| *several = None).or_insert(target);
            }
        }
        // The name of an input counts before that of an element.
        known.extend(specs.iter().enumerate().map(|(input, spec)| (&*spec.name, Some(Target::Whole(input)))));
        let mut targets = Vec::new();
        for name in columns {
            match known.insert(&**name, None) {
                Some(Some(target)) => targets.push(target),
                Some(None) if columns.iter().filter(|other| ***other == **name).count() > 1 => {
                    return Err(invalid(format!("column {} is given more than once", quoted(name))));
                }
                Some(None) => {
                    return Err(wrong(format!(
                        "column {} may be an element of several inputs: use the Open Inference Protocol",
                        quoted(name)
                    )));
                }
                None => return Err(self.unknown(name)),
            }
        }
        Ok(Targets::Named(targets))
    }

    /// The targets of columns without names: the elements of the only input.
    ///
    /// # Errors
    /// When the model has several inputs.
    pub(super) fn in_order(self, columns: usize) -> Result<Targets, Failure> {
        if self.signature.inputs().len() == 1 {
            return Ok(Targets::InOrder(columns));
        }
        Err(invalid(format!(
            "the columns have no names, but this model has several inputs: expected the columns {}",
            self.listed()
        )))
    }

    fn unknown(self, name: &str) -> Failure {
        if self.signature.optional_inputs().iter().any(|spec| *spec.name == *name) {
            return invalid(format!(
                "input {} is optional and counts for all rows: give it in {{\"inputs\": {{…}}}}",
                quoted(name)
            ));
        }
        wrong(format!("unknown column {}: this model takes {}", quoted(name), self.listed()))
    }

    /// The names of all columns, for a message.
    fn listed(self) -> String {
        const SHOWN: usize = 20;
        let mut names = Vec::new();
        let mut more = 0;
        for spec in self.signature.inputs() {
            let elements = self.names_of(spec);
            let itself = elements.is_empty().then_some(&*spec.name);
            for name in itself.into_iter().chain(elements.iter().map(String::as_str)) {
                if names.len() < SHOWN { names.push(quoted(name)) } else { more += 1 }
            }
        }
        if more > 0 {
            names.push(format!("and {more} more"));
        }
        names.join(", ")
    }
}

/// The number of elements of an input in one row. `None` where the signature leaves it open.
pub(super) fn width(spec: &TensorSpec) -> Option<usize> {
    spec.dims.as_deref()?.get(1..)?.iter().try_fold(1usize, |product, dim| match dim {
        Dim::Fixed(n) => product.checked_mul(*n),
        Dim::Free(_) => None,
    })
}

// === impl Plan ===

impl<'s> Plan<'s> {
    /// Prepares to read a table of about `rows` rows. With `scalars`, each value is one element.
    ///
    /// # Errors
    /// When the columns are not those of the model.
    pub(super) fn new(
        model: Model<'s>,
        targets: Targets,
        rows: usize,
        scalars: bool,
        reader: &Reader<'_>,
    ) -> Result<Plan<'s>, Failure> {
        let specs = model.signature.inputs();
        let targets = match targets {
            Targets::Named(named) if scalars => {
                Targets::Named(named.into_iter().map(|target| one_element(target, specs)).collect::<Result<_, _>>()?)
            }
            other => other,
        };
        let mut parts = Vec::with_capacity(specs.len());
        for (input, spec) in specs.iter().enumerate() {
            parts.push(match &targets {
                Targets::InOrder(columns) => Part::Elements(Elements::in_order(spec, *columns, rows, reader)?),
                Targets::Named(named) => Part::of(model, (input, spec), named, rows, reader)?,
            });
        }
        Ok(Plan { targets, parts })
    }

    /// The number of columns.
    pub(super) fn columns(&self) -> usize {
        match &self.targets {
            Targets::InOrder(columns) => *columns,
            Targets::Named(targets) => targets.len(),
        }
    }

    /// Reads the value at the cursor as one of a column. Columns are read in their order, row by row.
    pub(super) fn read(&mut self, column: usize, reader: &mut Reader<'_>) -> Result<(), Failure> {
        match &mut self.parts[self.targets.input(column)] {
            Part::Whole(whole) => whole.read(reader),
            Part::Elements(elements) => elements.read(reader),
        }
    }

    /// The buffer that takes the values of a column of single elements.
    pub(super) fn buffer(&mut self, column: usize) -> Option<&mut Buffer> {
        match &mut self.parts[self.targets.input(column)] {
            Part::Elements(elements) => Some(&mut elements.buffer),
            Part::Whole(_) => None,
        }
    }

    /// The inputs, with this number of rows.
    pub(super) fn finish(self, rows: usize) -> Result<Vec<NamedTensor>, Failure> {
        let finish = |part| match part {
            Part::Whole(column) => column.finish(Some(rows)),
            Part::Elements(elements) => elements.finish(rows),
        };
        self.parts.into_iter().map(finish).collect()
    }
}

impl Targets {
    fn input(&self, column: usize) -> usize {
        match self {
            Targets::InOrder(_) => 0,
            Targets::Named(targets) => targets[column].input(),
        }
    }
}

impl Target {
    pub(super) fn input(self) -> usize {
        match self {
            Target::Whole(input) | Target::Element { input, .. } => input,
        }
    }
}

/// The only element of an input that has one per row.
fn one_element(target: Target, specs: &[TensorSpec]) -> Result<Target, Failure> {
    let Target::Whole(input) = target else { return Ok(target) };
    match width(&specs[input]) {
        Some(1) => Ok(Target::Element { input, element: 0 }),
        _ => Err(wrong(format!("column {}: one value is not a row of {}", quoted(&specs[input].name), specs[input]))),
    }
}

impl<'s> Part<'s> {
    /// The part of an input whose columns are named. All of its elements must be there.
    fn of(
        model: Model<'s>,
        (input, spec): (usize, &'s TensorSpec),
        targets: &[Target],
        rows: usize,
        reader: &Reader<'_>,
    ) -> Result<Part<'s>, Failure> {
        let names = model.names_of(spec);
        let whole = targets.contains(&Target::Whole(input));
        let of_input = |target: &Target| match target {
            Target::Element { input: of, element } if *of == input => Some(*element),
            _ => None,
        };
        let order: Vec<usize> = targets.iter().filter_map(of_input).collect();
        if whole && order.is_empty() {
            return Ok(Part::Whole(Column::new(spec, rows, reader)?));
        }
        if whole {
            let name = names.get(order[0]).map_or("", String::as_str);
            let message =
                format!("column {} is an element of input {:?}, which is given too", quoted(name), &*spec.name);
            return Err(invalid(message));
        }
        let expected = width(spec).unwrap_or(names.len()).max(1);
        if order.len() != expected || order.iter().any(|element| *element >= expected) {
            let given: HashSet<usize> = order.into_iter().collect();
            let absent = names.iter().enumerate().find(|(element, _)| !given.contains(element));
            let name = absent.map_or(&*spec.name, |(_, name)| name.as_str());
            return Err(wrong(format!("column {} is missing: this model takes {}", quoted(name), model.listed())));
        }
        Elements::new(spec, order, rows, reader).map(Part::Elements)
    }
}

// === impl Elements ===

impl<'s> Elements<'s> {
    fn new(spec: &'s TensorSpec, order: Vec<usize>, rows: usize, reader: &Reader<'_>) -> Result<Elements<'s>, Failure> {
        let elements = Elements::in_order(spec, order.len(), rows, reader)?;
        let is_sorted = order.iter().copied().eq(0..order.len());
        Ok(Elements { order: Some(order).filter(|_| !is_sorted), ..elements })
    }

    fn in_order(
        spec: &'s TensorSpec,
        columns: usize,
        rows: usize,
        reader: &Reader<'_>,
    ) -> Result<Elements<'s>, Failure> {
        if matches!(spec.dims.as_deref(), Some([])) {
            return Err(wrong(format!("input {spec} has no dimension for the rows of a table")));
        }
        if let Some(expected) = width(spec).filter(|expected| *expected != columns) {
            let message = format!("input {:?} takes {expected} columns ({spec}), got {columns}", &*spec.name);
            return Err(wrong(message));
        }
        let buffer = Buffer::new(spec.datatype, rows.saturating_mul(columns), reader)?;
        Ok(Elements { spec, buffer, order: None, width: columns })
    }

    fn read(&mut self, reader: &mut Reader<'_>) -> Result<(), Failure> {
        reader.peek();
        let start = reader.offset();
        match self.buffer.read(reader, RULES) {
            Ok(nesting) if nesting.depth() == 0 => Ok(()),
            Ok(_) => Err(wrong(format!("expected one value, got {}", reader.excerpt(start)))),
            Err(ParseError::Syntax(syntax)) => Err(syntax.into()),
            Err(ParseError::WrongValue(problem)) => Err(wrong(problem)),
        }
    }

    fn finish(mut self, rows: usize) -> Result<NamedTensor, Failure> {
        if let Some(order) = &self.order {
            self.buffer.reorder_rows(order);
        }
        tensor(self.spec, self.buffer, rows, self.width)
    }
}

/// An input of single elements: its shape is that of the signature where that is fixed, else rows and columns.
pub(super) fn tensor(spec: &TensorSpec, buffer: Buffer, rows: usize, columns: usize) -> Result<NamedTensor, Failure> {
    let of_row = spec.dims.as_deref().and_then(|dims| dims.get(1..)).filter(|_| width(spec).is_some());
    let mut extents = vec![rows];
    match of_row {
        Some(dims) => {
            extents.extend(dims.iter().filter_map(|dim| if let Dim::Fixed(n) = dim { Some(*n) } else { None }));
        }
        None => extents.push(columns),
    }
    let tensor = Tensor::new(Shape::new(&extents), buffer.finish())
        .map_err(|e| wrong(format!("input {:?}: {e}", &*spec.name)))?;
    Ok(NamedTensor { name: spec.name.to_string(), tensor })
}
