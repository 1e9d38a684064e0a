//! Reads a TOML document into `raw`'s tables and names every mistake on the way.
//!
//! serde stops at the first mistake; an operator wants them all. So the document is parsed into
//! toml's tree, which knows the place of every key and value, and each table of `raw` walks its
//! part of it. A value that cannot be read becomes [`Field::Wrong`]: it has been reported, and no
//! later check says anything more about it.

use std::ops::Range;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::report::Findings;

/// A key that a section may hold.
#[derive(Debug)]
pub(super) struct Key {
    /// Its name.
    pub(super) name: &'static str,
    /// It must be there; the text is a line to add.
    required: Option<&'static str>,
    /// It has no effect in this version; the text says what will not happen.
    pub(super) later: Option<&'static str>,
    /// What it may hold, if that is a section itself.
    pub(super) section: Option<&'static Section>,
}

impl Key {
    pub(super) const fn new(
        name: &'static str,
        required: Option<&'static str>,
        later: Option<&'static str>,
        section: Option<&'static Section>,
    ) -> Self {
        Self { name, required, later, section }
    }

    /// As an operator would write it: `listen`, `[cluster]`, `[[node]]`.
    fn shown(&self) -> &'static str {
        self.section.map_or(self.name, |section| section.name)
    }

    /// `listen` for keys, `[[node]]` for sections.
    fn noun(&self) -> &'static str {
        if self.section.is_some() { "section" } else { "key" }
    }
}

/// What may stand in a part of the file.
#[derive(Debug)]
pub(super) struct Section {
    /// Its header, such as `[[service.backend]]`.
    pub(super) name: &'static str,
    /// Its keys.
    pub(super) keys: &'static [Key],
}

impl Section {
    /// This section and all within it.
    pub(super) fn all(&'static self) -> Vec<&'static Section> {
        let within = self.keys.iter().filter_map(|key| key.section).flat_map(Section::all);
        std::iter::once(self).chain(within).collect()
    }
}

/// The value of a key.
#[derive(Clone, Debug, Default)]
pub(super) enum Field<T> {
    /// The key is not there.
    #[default]
    Absent,
    /// The value is wrong, and that has been reported.
    Wrong,
    /// The value.
    Is(Spanned<T>),
}

impl<T> Field<T> {
    /// The value with its place, if there is a good one.
    pub(super) fn get(&self) -> Option<&Spanned<T>> {
        match self {
            Self::Is(value) => Some(value),
            Self::Absent | Self::Wrong => None,
        }
    }

    /// The value alone.
    pub(super) fn value(&self) -> Option<&T> {
        self.get().map(Spanned::get_ref)
    }

    /// The place of the value.
    pub(super) fn span(&self) -> Option<Range<usize>> {
        self.get().map(Spanned::span)
    }

    /// Whether the key is not there.
    pub(super) fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }

    /// Whether the value is wrong.
    pub(super) fn is_wrong(&self) -> bool {
        matches!(self, Self::Wrong)
    }
}

impl<T: Read> Field<T> {
    pub(super) fn read(value: &Spanned<DeValue<'_>>, key: &str, findings: &mut Findings) -> Self {
        T::read(value, key, findings)
            .map_or(Self::Wrong, |read| Self::Is(Spanned::new(value.span(), read)))
    }
}

impl<T: Clone> Field<T> {
    /// The value, or what holds without it.
    pub(super) fn or(&self, default: T) -> T {
        self.value().cloned().unwrap_or(default)
    }
}

/// A list of values or of sections, each good or wrong by itself.
#[derive(Clone, Debug)]
pub(super) struct List<T>(Vec<Field<T>>);

impl<T> List<T> {
    /// The good ones.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Spanned<T>> {
        self.0.iter().filter_map(Field::get)
    }

    /// Whether there is none at all, good or wrong.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one is wrong.
    pub(super) fn has_wrong(&self) -> bool {
        self.0.iter().any(Field::is_wrong)
    }
}

impl<T> Field<List<T>> {
    /// The good ones; none if the key is not there.
    pub(super) fn items(&self) -> impl Iterator<Item = &Spanned<T>> {
        self.value().into_iter().flat_map(List::iter)
    }
}

/// A type that a TOML value can be read as.
pub(super) trait Read: Sized {
    /// What may stand in it, if it is a section.
    const SECTION: Option<&'static Section> = None;

    /// Reads it, or reports why not. `key` is the key that it belongs to.
    fn read(value: &Spanned<DeValue<'_>>, key: &str, findings: &mut Findings) -> Option<Self>;
}

impl<T: Read> Read for List<T> {
    const SECTION: Option<&'static Section> = T::SECTION;

    fn read(value: &Spanned<DeValue<'_>>, key: &str, findings: &mut Findings) -> Option<Self> {
        if let Some(items) = value.get_ref().as_array() {
            return Some(Self(items.iter().map(|v| Field::read(v, key, findings)).collect()));
        }
        if let Some(section) = Self::SECTION {
            findings
                .error(value.span(), format!("`{key}` may stand several times"))
                .help(format!("write its header as `{}`", section.name));
        } else {
            wrong_type(value, key, "a list", findings).help(format!("write `{key} = [ … ]`"));
        }
        None
    }
}

/// Reports a value of the wrong type.
pub(super) fn wrong_type<'a>(
    value: &Spanned<DeValue<'_>>,
    key: &str,
    wanted: &str,
    findings: &'a mut Findings,
) -> &'a mut super::report::Finding {
    let found = match value.get_ref() {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a decimal number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a section",
    };
    findings.error(value.span(), format!("`{key}` must be {wanted}, but is {found}"))
}

/// The string in `value`.
pub(super) fn string<'a>(
    value: &'a Spanned<DeValue<'_>>,
    key: &str,
    wanted: &str,
    findings: &mut Findings,
) -> Option<&'a str> {
    let text = value.get_ref().as_str();
    if text.is_none() {
        wrong_type(value, key, wanted, findings).help("text stands in double quotes");
    }
    text
}

/// The keys of a section.
pub(super) fn table<'a, 'i>(
    value: &'a Spanned<DeValue<'i>>,
    key: &str,
    section: &Section,
    findings: &mut Findings,
) -> Option<&'a DeTable<'i>> {
    match value.get_ref() {
        DeValue::Table(table) => Some(table),
        DeValue::Array(_) if !section.name.starts_with("[[") => {
            findings
                .error(value.span(), format!("`{key}` stands once"))
                .help(format!("write its header as `{}`", section.name));
            None
        }
        _ => {
            wrong_type(value, key, "a section", findings)
                .help(format!("write it under a header `{}`", section.name));
            None
        }
    }
}

/// Says that a known key has no effect yet.
pub(super) fn note_later(span: Range<usize>, key: &Key, findings: &mut Findings) {
    if let Some(why) = key.later {
        let (shown, noun) = (key.shown(), key.noun());
        findings
            .warning(
                span,
                format!("`{shown}` is not in this version yet: {why}; the {noun} is ignored"),
            )
            .help(format!("its values are checked; keep the {noun} for the version that has it"));
    }
}

/// Says that a key must be there.
pub(super) fn note_missing(
    span: Range<usize>,
    section: &Section,
    key: &Key,
    findings: &mut Findings,
) {
    if let Some(example) = key.required {
        let (name, shown) = (section.name, key.shown());
        findings.error(span, format!("`{name}` needs `{shown}`")).help(format!("add `{example}`"));
    }
}

/// Says that a key is unknown, and which one may be meant: that one is returned, for it is not
/// missing then.
pub(super) fn note_unknown(
    unknown: &Spanned<impl AsRef<str>>,
    section: &'static Section,
    root: &'static Section,
    findings: &mut Findings,
) -> Option<&'static str> {
    let name = unknown.get_ref().as_ref();
    let place =
        if section.name.is_empty() { String::new() } else { format!(" in `{}`", section.name) };
    let finding = findings.error(unknown.span(), format!("unknown key `{name}`{place}"));
    let close = |key: &&Key| distance(name, key.name) <= 1 + name.chars().count() / 4;
    if let Some(key) = section.keys.iter().filter(close).min_by_key(|key| distance(name, key.name))
    {
        finding.help(format!("did you mean `{}`?", key.shown()));
        return Some(key.name);
    }
    let sections = root.all();
    let owners: Vec<_> = sections
        .iter()
        .flat_map(|owner| owner.keys.iter().map(move |key| (owner, key)))
        .filter(|(_, key)| key.name == name)
        .collect();
    finding.help(match owners[..] {
        [(_, Key { section: Some(section), .. })] => {
            format!("`{name}` is a section: write its header as `{}`", section.name)
        }
        [(owner, _)] => format!("`{name}` belongs in `{}`: move it there", owner.name),
        [(one, _), (two, _)] => format!("`{name}` belongs in `{}` or `{}`", one.name, two.name),
        _ => {
            let known: Vec<_> =
                section.keys.iter().map(|key| format!("`{}`", key.shown())).collect();
            format!("known here: {}", known.join(", "))
        }
    });
    None
}

/// How far two words are apart, in edits; `-` and `_` and case do not count.
pub(super) fn distance(a: &str, b: &str) -> usize {
    let plain = |word: &str| word.to_lowercase().replace('-', "_");
    strsim::osa_distance(&plain(a), &plain(b))
}

/// Declares a section of the file: a struct with a [`Field`] for each key, and its [`Read`].
///
/// `required "…"` gives a line to add when the key is missing; `later "…"` says what will not
/// happen although the key is set.
macro_rules! section {
    (
        $(#[$meta:meta])*
        $name:ident $header:literal {
            $($field:ident: $type:ty $(, required $example:literal)? $(, later $why:literal)?;)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default)]
        pub(super) struct $name {
            $(pub(super) $field: $crate::config::read::Field<$type>,)*
        }

        impl $name {
            pub(super) const KEYS: $crate::config::read::Section = $crate::config::read::Section {
                name: $header,
                keys: &[$($crate::config::read::Key::new(
                    stringify!($field),
                    section!(@option $($example)?),
                    section!(@option $($why)?),
                    <$type as $crate::config::read::Read>::SECTION,
                ),)*],
            };

            /// Reads the keys of a table whose header stands at `span`.
            pub(super) fn read_table(
                table: &toml::de::DeTable<'_>,
                span: std::ops::Range<usize>,
                findings: &mut $crate::config::report::Findings,
            ) -> Self {
                use $crate::config::read;
                let mut this = Self::default();
                let mut meant = Vec::new();
                for (key, value) in table {
                    match key.get_ref().as_ref() {
                        $(stringify!($field) => {
                            this.$field = read::Field::read(value, stringify!($field), findings);
                        })*
                        _ => meant.extend(read::note_unknown(
                            key, &Self::KEYS, &$crate::config::raw::File::KEYS, findings,
                        )),
                    }
                    if let Some(known) =
                        Self::KEYS.keys.iter().find(|known| known.name == key.get_ref().as_ref())
                    {
                        read::note_later(key.span(), known, findings);
                    }
                }
                for key in Self::KEYS.keys {
                    let absent = match key.name {
                        $(stringify!($field) => this.$field.is_absent(),)*
                        _ => false,
                    };
                    if absent && !meant.contains(&key.name) {
                        read::note_missing(span.clone(), &Self::KEYS, key, findings);
                    }
                }
                this
            }
        }

        impl $crate::config::read::Read for $name {
            const SECTION: Option<&'static $crate::config::read::Section> = Some(&Self::KEYS);

            fn read(
                value: &toml::Spanned<toml::de::DeValue<'_>>,
                key: &str,
                findings: &mut $crate::config::report::Findings,
            ) -> Option<Self> {
                let table = $crate::config::read::table(value, key, &Self::KEYS, findings)?;
                Some(Self::read_table(table, value.span(), findings))
            }
        }
    };
    (@option) => { None };
    (@option $text:literal) => { Some($text) };
}

pub(super) use section;
