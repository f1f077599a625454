//! The values of inputs, as the history keeps them: four bytes each, as a row may have hundreds.

/// A value of an input, as it is kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Cell {
    Missing,
    Number(f32),
    /// A text by its number in [`super::Snapshot::text`].
    Text(u32),
    /// A text that came when there were too many others.
    Other,
}

/// A cell in four bytes. A number is itself; the others are values of NaN, which no number is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packed(u32);

const MISSING: u32 = 0x7fc0_0000;
const OTHER: u32 = 0x7fc0_0001;
/// With the number of a text in the lower bits.
const TEXT: u32 = 0xffc0_0000;
/// Limit for numbers of texts.
pub(super) const MAX_TEXTS: usize = 1 << 22;

impl Packed {
    pub(super) fn of(cell: Cell) -> Packed {
        Packed(match cell {
            Cell::Number(number) if !number.is_nan() => number.to_bits(),
            Cell::Missing | Cell::Number(_) => MISSING,
            Cell::Text(number) if (number as usize) < MAX_TEXTS => TEXT | number,
            Cell::Text(_) | Cell::Other => OTHER,
        })
    }

    /// As four bytes of another gateway, and back.
    pub(super) fn bits(self) -> u32 {
        self.0
    }

    pub(super) fn from_bits(bits: u32) -> Packed {
        Packed(bits)
    }

    pub(super) fn cell(self) -> Cell {
        match self.0 {
            MISSING => Cell::Missing,
            OTHER => Cell::Other,
            bits if bits >= TEXT => Cell::Text(bits & !TEXT),
            bits => Cell::Number(f32::from_bits(bits)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_cell_is_the_cell() {
        let numbers = [0.0, -0.0, 1.5, f32::MIN, f32::MAX, f32::INFINITY, f32::NEG_INFINITY, f32::MIN_POSITIVE];
        let cells = numbers.map(Cell::Number).into_iter().chain([0, 1, 9999].map(Cell::Text));
        for cell in cells.chain([Cell::Missing, Cell::Other]) {
            assert_eq!(Packed::of(cell).cell(), cell);
        }
        for nan in [f32::NAN, -f32::NAN, f32::from_bits(OTHER), f32::from_bits(TEXT | 7), f32::from_bits(0x7f80_0001)] {
            assert_eq!(Packed::of(Cell::Number(nan)).cell(), Cell::Missing, "{:x}", nan.to_bits());
        }
        assert_eq!(Packed::of(Cell::Text(u32::MAX)).cell(), Cell::Other);
    }
}
