//! Which sequence numbers have been accepted (the sliding window of RFC 4303, section 3.4.3).

/// Numbers behind the highest that can still be accepted: more than are on the way at once.
const SIZE: u64 = 1024;

const WORDS: usize = (SIZE / 64) as usize;

/// Accepts each number once, in nearly any order. Numbers begin at 1.
#[derive(Clone, Debug, Default)]
pub struct Window {
    /// The highest that was accepted.
    highest: u64,
    /// Bit `n % SIZE`: the number `n` was accepted, of the last [`SIZE`].
    seen: [u64; WORDS],
}

impl Window {
    /// Whether the number is new. It is not from then on.
    pub fn accept(&mut self, number: u64) -> bool {
        if number == 0 || number.saturating_add(SIZE) <= self.highest {
            return false;
        }
        if number > self.highest {
            if number - self.highest >= SIZE {
                self.seen = [0; WORDS];
            } else {
                for passed in self.highest + 1..number {
                    let (word, bit) = place(passed);
                    self.seen[word] &= !bit;
                }
            }
            self.highest = number;
            let (word, bit) = place(number);
            self.seen[word] |= bit;
            return true;
        }
        let (word, bit) = place(number);
        let is_new = self.seen[word] & bit == 0;
        self.seen[word] |= bit;
        is_new
    }
}

fn place(number: u64) -> (usize, u64) {
    let at = number % SIZE;
    ((at / 64) as usize, 1 << (at % 64))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn in_order_and_out_of_order_once() {
        let mut window = Window::default();
        assert!(!window.accept(0));
        for number in [1, 2, 5, 3, 4, 1000, 6, 999] {
            assert!(window.accept(number), "{number}");
            assert!(!window.accept(number), "{number}");
        }
        assert!(window.accept(2000));
        assert!(window.accept(2000 - SIZE + 1), "the oldest that is still known");
        assert!(!window.accept(2000 - SIZE), "too old to tell");
        assert!(window.accept(u64::MAX));
        assert!(!window.accept(2001));
    }

    proptest! {
        #[test]
        fn no_number_is_accepted_twice(numbers in prop::collection::vec(0_u64..3000, 0..4000)) {
            let mut window = Window::default();
            let mut accepted = HashSet::new();
            let mut highest = 0;
            for number in numbers {
                let is_new = window.accept(number);
                if is_new {
                    prop_assert!(accepted.insert(number), "{} twice", number);
                } else {
                    prop_assert!(
                        number == 0 || accepted.contains(&number) || number + SIZE <= highest,
                        "{} is refused and has not come", number
                    );
                }
                highest = highest.max(number);
            }
        }
    }
}
