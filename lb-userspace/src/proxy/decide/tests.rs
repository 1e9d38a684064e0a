//! The table, row by row, and then every combination of facts against the rules one by one.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn rules(classes: &[Class]) -> Rules {
    Rules { classes: Classes::of(classes), tries: 0, timeout: Duration::ZERO }
}

/// What holds without a line in the configuration.
fn usual() -> Rules {
    rules(&[Class::Error, Class::Timeout])
}

/// A GET that failed on a new connection after it was sent.
fn facts(failure: Failure) -> Facts {
    Facts {
        failure,
        sent: true,
        reused: false,
        repeatable: true,
        kept: true,
        begun: false,
        attempts: 1,
        others: true,
        elapsed: Duration::ZERO,
    }
}

const OTHER: Next = Next::Other { from_budget: true };
const OTHER_UNSENT: Next = Next::Other { from_budget: false };

fn answer(status: u16) -> Next {
    Next::Answer(StatusCode::from_u16(status).unwrap())
}

#[test]
fn the_table_of_nginx() {
    // Failure, sent; what becomes of a GET, of a POST, and of a GET without another backend; charged.
    let rows = [
        (Failure::Refused, false, OTHER_UNSENT, OTHER_UNSENT, answer(502), true),
        (Failure::Unreachable, false, OTHER_UNSENT, OTHER_UNSENT, answer(502), true),
        (Failure::Local, false, OTHER_UNSENT, OTHER_UNSENT, answer(502), false),
        (Failure::ConnectTimeout, false, OTHER_UNSENT, OTHER_UNSENT, answer(504), true),
        (Failure::Handshake, false, OTHER_UNSENT, OTHER_UNSENT, answer(502), true),
        (Failure::Closed, true, OTHER, answer(502), answer(502), true),
        (Failure::SendTimeout, true, OTHER, answer(504), answer(504), true),
        (Failure::ReadTimeout, true, OTHER, answer(504), answer(504), true),
        (Failure::InvalidHeader, true, answer(502), answer(502), answer(502), true),
        (Failure::Status(Class::Http500), true, Next::Pass, Next::Pass, Next::Pass, false),
        (Failure::Status(Class::Http502), true, Next::Pass, Next::Pass, Next::Pass, false),
        (Failure::Status(Class::Http503), true, Next::Pass, Next::Pass, Next::Pass, false),
        (Failure::Status(Class::Http504), true, Next::Pass, Next::Pass, Next::Pass, false),
        (Failure::Status(Class::Http429), true, Next::Pass, Next::Pass, Next::Pass, false),
        (Failure::Status(Class::Http403), true, Next::Pass, Next::Pass, Next::Pass, false),
        (Failure::Status(Class::Http404), true, Next::Pass, Next::Pass, Next::Pass, false),
        (Failure::Deadline, true, answer(504), answer(504), answer(504), false),
    ];
    for (failure, sent, get, post, alone, charge) in rows {
        let facts = Facts { sent, ..facts(failure) };
        let ask = |facts: Facts| decide(usual(), &facts);
        assert_eq!(ask(facts), Decision { next: get, charge }, "GET, {failure:?}");
        let asked = ask(Facts { repeatable: false, ..facts });
        assert_eq!(asked, Decision { next: post, charge }, "POST, {failure:?}");
        let asked = ask(Facts { others: false, ..facts });
        assert_eq!(asked, Decision { next: alone, charge }, "GET, alone, {failure:?}");
    }
}

#[test]
fn a_listed_status_is_tried_elsewhere_and_charged_on_the_last_try_too() {
    for (class, charge) in [
        (Class::Http500, true),
        (Class::Http502, true),
        (Class::Http503, true),
        (Class::Http504, true),
        (Class::Http429, true),
        (Class::Http403, false),
        (Class::Http404, false),
    ] {
        let listed = rules(&[class]);
        let facts = facts(Failure::Status(class));
        assert_eq!(decide(listed, &facts), Decision { next: OTHER, charge });
        let last = Facts { others: false, ..facts };
        assert_eq!(decide(listed, &last), Decision { next: Next::Pass, charge });
        let post = Facts { repeatable: false, ..facts };
        assert_eq!(decide(listed, &post), Decision { next: Next::Pass, charge });
        let post = Facts { repeatable: false, ..facts };
        let all = rules(&[class, Class::NonIdempotent]);
        assert_eq!(decide(all, &post), Decision { next: OTHER, charge });
    }
}

#[test]
fn a_connection_that_was_closed_while_it_was_kept_is_nobodys_fault() {
    let stale = Facts { reused: true, others: false, attempts: 9, ..facts(Failure::Closed) };
    let tight = Rules { tries: 1, ..usual() };
    let again = Decision { next: Next::Again, charge: false };
    assert_eq!(decide(tight, &stale), again);
    assert_eq!(decide(tight, &Facts { sent: false, repeatable: false, ..stale }), again);
    // It may have been sent, so a POST is not repeated; but nobody is blamed.
    let post = decide(usual(), &Facts { repeatable: false, ..stale });
    assert_eq!(post, Decision { next: answer(502), charge: false });
    // Silence on a kept connection is the backend's.
    let silent = Facts { reused: true, ..facts(Failure::ReadTimeout) };
    assert_eq!(decide(usual(), &silent), Decision { next: OTHER, charge: true });
}

#[test]
fn limits() {
    let failed = facts(Failure::Closed);
    let next = |rules: Rules, facts: Facts| decide(rules, &facts).next;
    let tries = Rules { tries: 2, ..usual() };
    assert_eq!(next(tries, failed), OTHER);
    assert_eq!(next(tries, Facts { attempts: 2, ..failed }), answer(502));
    let timeout = Rules { timeout: SECOND, ..usual() };
    assert_eq!(next(timeout, Facts { elapsed: SECOND / 2, ..failed }), OTHER);
    assert_eq!(next(timeout, Facts { elapsed: SECOND, ..failed }), answer(502));
    assert_eq!(next(usual(), Facts { kept: false, ..failed }), answer(502));
    let unsent = Facts { kept: false, sent: false, ..facts(Failure::Refused) };
    assert_eq!(next(usual(), unsent), OTHER_UNSENT);
    assert_eq!(next(rules(&[]), failed), answer(502));
    assert_eq!(next(usual(), Facts { begun: true, ..failed }), Next::Cut);
}

#[test]
fn which_requests_may_be_repeated() {
    for (method, alone) in [
        (Method::GET, true),
        (Method::HEAD, true),
        (Method::PUT, true),
        (Method::DELETE, true),
        (Method::OPTIONS, true),
        (Method::POST, false),
        (Method::PATCH, false),
        (Method::from_bytes(b"LOCK").unwrap(), false),
        (Method::from_bytes(b"PROPFIND").unwrap(), true),
    ] {
        assert_eq!(is_repeatable(&method, false), alone, "{method}");
        assert!(is_repeatable(&method, true), "{method} with a key");
    }
}

const FAILURES: [Failure; 18] = [
    Failure::Refused,
    Failure::Local,
    Failure::Unreachable,
    Failure::ConnectTimeout,
    Failure::Handshake,
    Failure::Closed,
    Failure::SendTimeout,
    Failure::ReadTimeout,
    Failure::InvalidHeader,
    Failure::Status(Class::Http500),
    Failure::Status(Class::Http502),
    Failure::Status(Class::Http503),
    Failure::Status(Class::Http504),
    Failure::Status(Class::Http403),
    Failure::Status(Class::Http404),
    Failure::Status(Class::Http429),
    Failure::Deadline,
    Failure::Truncated,
];

/// Calls `check` with every failure, every set of two classes, and every combination of the facts.
fn every_combination(mut check: impl FnMut(Rules, Facts)) {
    let bools = [false, true];
    for failure in FAILURES {
        for one in Class::ALL {
            for other in Class::ALL {
                for bits in 0..64_u32 {
                    let bit = |at: u32| bits & (1 << at) != 0;
                    for (tries, attempts) in [(0, 1), (0, 7), (2, 1), (2, 2), (1, 1)] {
                        for late in bools {
                            let facts = Facts {
                                failure,
                                sent: bit(0),
                                reused: bit(1),
                                repeatable: bit(2),
                                kept: bit(3),
                                begun: bit(4),
                                attempts,
                                others: bit(5),
                                elapsed: if late { SECOND } else { Duration::ZERO },
                            };
                            let classes = Classes::of(&[one, other]);
                            check(Rules { classes, tries, timeout: SECOND }, facts);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn no_combination_breaks_a_rule() {
    let mut seen = 0;
    every_combination(|rules, facts| {
        seen += 1;
        let Decision { next, charge } = decide(rules, &facts);
        let say = || format!("{rules:?} {facts:?} {next:?} {charge}");
        let repeats = matches!(next, Next::Other { .. } | Next::Again);
        if repeats {
            let class = facts.failure.class().unwrap_or_else(|| panic!("{}", say()));
            assert!(rules.classes.has(class), "not listed: {}", say());
            assert!(!facts.begun, "after the head: {}", say());
            assert!(facts.elapsed < rules.timeout, "too late: {}", say());
            if facts.sent {
                assert!(facts.kept, "the body is lost: {}", say());
                let harmless = facts.repeatable || rules.classes.has(Class::NonIdempotent);
                assert!(harmless, "may do harm: {}", say());
            }
        }
        match next {
            Next::Other { from_budget } => {
                assert!(facts.others, "there is no other: {}", say());
                assert!(rules.tries == 0 || facts.attempts < rules.tries, "{}", say());
                assert_eq!(from_budget, facts.sent, "{}", say());
            }
            Next::Again => {
                assert!(facts.reused && facts.failure == Failure::Closed && !charge, "{}", say());
            }
            Next::Pass => assert!(matches!(facts.failure, Failure::Status(_)), "{}", say()),
            Next::Answer(status) => {
                assert!(!matches!(facts.failure, Failure::Status(_)), "hides an answer: {}", say());
                let timeout = facts.failure.class() == Some(Class::Timeout)
                    || facts.failure == Failure::Deadline;
                assert_eq!(status, if timeout { 504 } else { 502 }, "{}", say());
            }
            Next::Cut => assert!(facts.begun, "{}", say()),
        }
        // And no retry is missed.
        let listed = facts.failure.class().is_some_and(|class| rules.classes.has(class));
        let wanted = listed
            && !facts.begun
            && facts.others
            && facts.elapsed < rules.timeout
            && (rules.tries == 0 || facts.attempts < rules.tries)
            && (!facts.sent || (facts.kept && facts.repeatable));
        assert!(!wanted || repeats, "not tried: {}", say());
    });
    assert_eq!(seen, 18 * 11 * 11 * 64 * 5 * 2);
}
