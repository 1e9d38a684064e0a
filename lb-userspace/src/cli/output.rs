//! Text on standard output: columns, sizes, ages.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

/// Prints text. Standard output may be a pipe that nobody reads any more.
pub(super) fn print(text: &str) -> io::Result<()> {
    print_bytes(text.as_bytes())
}

/// Prints a piece of a text.
pub(super) fn print_bytes(piece: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(piece)?;
    out.flush()
}

/// Whether the reader of standard output has gone away, as `head` does: no failure of ours.
pub(super) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|it| it.kind() == io::ErrorKind::BrokenPipe)
}

/// Lines in columns as wide as their widest cell, two spaces between them.
pub(super) fn columns(rows: &[Vec<String>], indent: usize) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..count).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = " ".repeat(indent);
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a `String` cannot fail.
            let _ = write!(line, "{cell:width$}  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// `1.5 GB`: powers of 1000, three digits.
pub(super) fn bytes(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    // The next unit from where this one would be rounded to 1000.
    while value >= 999.5 && unit < units.len() - 1 {
        value /= 1000.0;
        unit += 1;
    }
    let digits = usize::from(unit > 0 && value < 99.95);
    format!("{value:.digits$} {}", units[unit])
}

/// `3 d 4 h`: the two greatest units.
pub(super) fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".into(), "bb".into()], vec!["ccc".into(), String::new()]];
        assert_eq!(columns(&rows, 2), "  a    bb\n  ccc\n");
    }

    #[test]
    fn sizes_have_units() {
        let shown = [0, 999, 1000, 1500, 99_949, 99_950, 999_499, 999_500, u64::MAX].map(bytes);
        let expected = [
            "0 B", "999 B", "1.0 kB", "1.5 kB", "99.9 kB", "100 kB", "999 kB", "1.0 MB", "18.4 EB",
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn ages_have_two_units() {
        let shown = [59, 60, 3599, 3600, 86_399, 90_000].map(age);
        let expected = ["59 s", "1 min 0 s", "59 min 59 s", "1 h 0 min", "23 h 59 min", "1 d 1 h"];
        assert_eq!(shown, expected);
    }
}
