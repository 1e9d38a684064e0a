//! Which of the cases are measured.

use std::collections::HashSet;

use super::{Case, Scope, baseline};

/// What the command line asks for; nothing is everything.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    /// Parts of names.
    pub(crate) words: Vec<String>,
    /// Numbers of flows.
    pub(crate) connections: Vec<u32>,
}

impl Selection {
    /// Whether the scope is measured.
    pub(crate) fn has(&self, scope: Scope) -> bool {
        self.connections.is_empty() || self.connections.contains(&scope.connections)
    }

    /// Those of the cases that are measured: the ones that were asked for, and what they are compared
    /// with. None at all if no name fits.
    pub(crate) fn of(&self, cases: Vec<Case>) -> Vec<Case> {
        if self.words.is_empty() {
            return cases;
        }
        let wanted = |name: &str| self.words.iter().any(|word| name.contains(word.as_str()));
        let kept: HashSet<String> = cases
            .iter()
            .filter(|case| wanted(&case.name))
            .flat_map(|case| {
                [Some(case.name.clone()), case.floor.clone(), Some(baseline(case.version))]
            })
            .flatten()
            .collect();
        cases.into_iter().filter(|case| kept.contains(&case.name)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Order, *};
    use crate::cases;

    fn names(selection: &Selection) -> Vec<String> {
        let cases = selection.of(cases::of(Scope::ALL[0], Order::InTurn));
        cases.into_iter().map(|case| case.name).collect()
    }

    #[test]
    fn without_words_all_are_measured() {
        let all = cases::of(Scope::ALL[0], Order::InTurn).len();
        assert_eq!(names(&Selection::default()).len(), all);
    }

    #[test]
    fn what_is_asked_for_comes_with_its_floor_and_the_trampoline() {
        let words = vec!["TCP v4 known, to client".to_owned()];
        let expected =
            ["return XDP_TX, v4", "TCP v4 floor: look-up + NAT", "TCP v4 known, to client"];
        assert_eq!(names(&Selection { words, ..Selection::default() }), expected);
    }

    #[test]
    fn what_no_name_contains_selects_nothing() {
        let words = vec!["SCTP".to_owned()];
        assert!(names(&Selection { words, ..Selection::default() }).is_empty());
    }
}
