//! Rust source, taken apart just enough to look for words: code, comments and the rest.

/// A file with everything but one kind of text replaced by spaces. Lines stay where they are.
pub(super) struct Source {
    /// Without comments and the insides of literals.
    pub(super) code: String,
    /// Comments only.
    pub(super) comments: String,
}

/// What the lexer is in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Within {
    Code,
    LineComment,
    /// Depth of nesting.
    BlockComment(u32),
    /// A string; with so many `#` for a raw one, else `None`.
    Text(Option<usize>),
}

impl Source {
    /// Takes it apart.
    pub(super) fn new(text: &str) -> Self {
        let chars: Vec<char> = text.chars().collect();
        let mut source = Self { code: String::new(), comments: String::new() };
        let mut within = Within::Code;
        let mut at = 0;
        while at < chars.len() {
            let step =
                advance(&chars[at..], at.checked_sub(1).map(|last| chars[last]), &mut within);
            for &c in &chars[at..at + step.length] {
                source.push(c, step.kind);
            }
            at += step.length;
        }
        source
    }

    fn push(&mut self, c: char, kind: Kind) {
        let blank = if c == '\n' { '\n' } else { ' ' };
        self.code.push(if kind == Kind::Code { c } else { blank });
        self.comments.push(if kind == Kind::Comment { c } else { blank });
    }

    /// The code without the file's unit tests, which stand at its end.
    pub(super) fn code_without_tests(&self) -> &str {
        let tests = self.code.find("#[cfg(test)]\nmod tests");
        &self.code[..tests.unwrap_or(self.code.len())]
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Code,
    Comment,
    Literal,
}

/// So many characters of one kind.
struct Step {
    length: usize,
    kind: Kind,
}

fn advance(rest: &[char], before: Option<char>, within: &mut Within) -> Step {
    let step = |length, kind| Step { length, kind };
    match *within {
        Within::Code => {
            if rest.starts_with(&['/', '/']) {
                *within = Within::LineComment;
                return step(2, Kind::Comment);
            }
            if rest.starts_with(&['/', '*']) {
                *within = Within::BlockComment(1);
                return step(2, Kind::Comment);
            }
            if rest[0] == '"' {
                *within = Within::Text(None);
                return step(1, Kind::Code);
            }
            if let Some(hashes) = raw_string(rest, before) {
                *within = Within::Text(Some(hashes));
                return step(hashes + 2, Kind::Code);
            }
            step(character(rest).unwrap_or(1), Kind::Code)
        }
        Within::LineComment => {
            if rest[0] == '\n' {
                *within = Within::Code;
            }
            step(1, Kind::Comment)
        }
        Within::BlockComment(depth) => {
            let depth = if rest.starts_with(&['/', '*']) {
                depth + 1
            } else if rest.starts_with(&['*', '/']) {
                depth - 1
            } else {
                return step(1, Kind::Comment);
            };
            *within = if depth == 0 { Within::Code } else { Within::BlockComment(depth) };
            step(2, Kind::Comment)
        }
        Within::Text(None) => match rest[0] {
            '\\' => step(rest.len().min(2), Kind::Literal),
            '"' => {
                *within = Within::Code;
                step(1, Kind::Code)
            }
            _ => step(1, Kind::Literal),
        },
        Within::Text(Some(hashes)) => {
            let end =
                rest[0] == '"' && rest[1..].iter().take_while(|c| **c == '#').count() >= hashes;
            if end {
                *within = Within::Code;
                return step(1 + hashes, Kind::Code);
            }
            step(1, Kind::Literal)
        }
    }
}

/// Number of `#` if a raw string begins here.
fn raw_string(rest: &[char], before: Option<char>) -> Option<usize> {
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    // In `br"…"` the `b` comes first; `for"` does not exist.
    if rest[0] != 'r' || (in_word && before != Some('b')) {
        return None;
    }
    let hashes = rest[1..].iter().take_while(|c| **c == '#').count();
    (rest.get(1 + hashes) == Some(&'"')).then_some(hashes)
}

/// Length of a character literal, if one begins here and not a lifetime.
fn character(rest: &[char]) -> Option<usize> {
    if rest[0] != '\'' {
        return None;
    }
    if rest.get(1) == Some(&'\\') {
        return rest[3..].iter().position(|c| *c == '\'').map(|end| end + 4);
    }
    (rest.get(2) == Some(&'\'')).then_some(3)
}

/// Whether `word` stands in `line` by itself, not as a part of a longer name.
pub(super) fn has_word(line: &str, word: &str) -> bool {
    let in_name = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word).any(|(at, _)| {
        !in_name(line[..at].chars().next_back()) && !in_name(line[at + word.len()..].chars().next())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> String {
        Source::new(text).code.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn comments_and_strings_are_no_code() {
        assert_eq!(code("a // b\nc /* d /* e */ f */ g"), "a c g");
        assert_eq!(code(r#"x("todo!", "\"aya");"#), r#"x(" ", " ");"#);
        assert_eq!(code(r##"r#"aya " // "# y"##), r##"r#" "# y"##);
        assert_eq!(code(r#"br"\" z"#), r#"br" " z"#);
    }

    #[test]
    fn quotes_that_begin_no_string_do_not_confuse() {
        assert_eq!(code("fn f<'a>(x: &'a str) { '\"' } // s"), "fn f<'a>(x: &'a str) { '\"' }");
        assert_eq!(code(r"let q = '\''; let b = '\\'; k // x"), r"let q = '\''; let b = '\\'; k");
        assert_eq!(code("'\\u{1f}' + 1 // x"), "'\\u{1f}' + 1");
    }

    #[test]
    fn lines_stay_where_they_are() {
        let text = "a\n/* b\nc */ d\n\"e\nf\" g\n";
        let source = Source::new(text);
        assert_eq!(source.code.lines().count(), text.lines().count());
        assert_eq!(source.code.lines().nth(2), Some("     d"));
        assert_eq!(source.comments.lines().nth(1), Some("/* b"));
    }

    #[test]
    fn tests_at_the_end_are_cut_off() {
        let source = Source::new("a();\n#[cfg(test)]\nmod tests { b(); }\n");
        assert_eq!(source.code_without_tests(), "a();\n");
        assert_eq!(Source::new("a();\n").code_without_tests(), "a();\n");
    }

    #[test]
    fn words_are_whole() {
        assert!(has_word("use aya::Pod;", "aya"));
        assert!(!has_word("use aya_ebpf::x;", "aya"));
        assert!(!has_word("playa", "aya"));
        assert!(has_word("a(Instant::now())", "Instant::now"));
    }
}
