//! Numbers to give out: the lowest free one first.

use std::collections::BTreeSet;

/// Which numbers below a limit are free.
#[derive(Clone, Debug)]
pub(super) struct Numbers {
    /// Free ones below `next`.
    returned: BTreeSet<u32>,
    /// From here up none has been given out.
    next: u32,
    limit: u32,
}

impl Numbers {
    /// All numbers below `limit` are free.
    pub(super) fn new(limit: u32) -> Self {
        Self { returned: BTreeSet::new(), next: 0, limit }
    }

    /// Gives the lowest free number out.
    pub(super) fn lowest(&mut self) -> Option<u32> {
        if let Some(number) = self.returned.pop_first() {
            return Some(number);
        }
        let number = self.next;
        (number < self.limit).then(|| {
            self.next += 1;
            number
        })
    }

    /// Gives this number out. False if it is taken already.
    pub(super) fn take(&mut self, number: u32) -> bool {
        if number < self.next {
            return self.returned.remove(&number);
        }
        self.returned.extend(self.next..number);
        self.next = number + 1;
        true
    }

    /// The number is free again.
    pub(super) fn give_back(&mut self, number: u32) {
        if number < self.next {
            self.returned.insert(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Numbers;

    #[test]
    fn the_lowest_free_number_comes_first() {
        let mut numbers = Numbers::new(6);
        assert!(numbers.take(2) && !numbers.take(2));
        assert_eq!([(); 4].map(|()| numbers.lowest()), [Some(0), Some(1), Some(3), Some(4)]);
        numbers.give_back(1);
        numbers.give_back(4);
        assert_eq!([(); 4].map(|()| numbers.lowest()), [Some(1), Some(4), Some(5), None]);
        numbers.give_back(3);
        assert!(numbers.take(3));
        assert_eq!(numbers.lowest(), None);
    }
}
