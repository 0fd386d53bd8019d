//! The memory of refusals by itself: what it counts, what it gives to the audit, what it bounds.

use super::*;

fn told(who: &str, reason: &str, message: &str) -> Told {
    let who = match who {
        "" => Who::Stranger("unknown".into()),
        name => Who::Client {
            requester: format!("mdm:{name}"),
            name: name.into(),
        },
    };
    Told {
        who,
        rpc: "/lazaret.v1.DeviceService/RetireDevice".into(),
        code: Code::PermissionDenied,
        reason: reason.into(),
        message: message.into(),
        request: String::new(),
    }
}

struct Memory {
    state: State,
    now: Instant,
}

impl Memory {
    fn new() -> Self {
        Self {
            state: State::new(1),
            now: Instant::now(),
        }
    }
    fn take(&mut self, told: &Told) -> Taken {
        self.state.take(told, self.now, SystemTime::UNIX_EPOCH)
    }
    fn kept(&self) -> usize {
        self.state.clients.values().map(|c| c.records.len()).sum()
    }
}

#[test]
fn what_repeats_is_counted_and_audited_once_a_window() {
    let mut m = Memory::new();
    let refusal = told("a", "ROLE_NOT_ALLOWED", "no");
    let first = m.take(&refusal);
    assert!(first.logged && first.audited_as.as_deref() == Some(""));
    assert_eq!(first.code(), "R1");
    m.state.audited(1, Some(7));
    for _ in 0..99 {
        let again = m.take(&refusal);
        assert!(!again.logged && again.audited_as.is_none());
        assert_eq!(again.code(), "A7", "the code of the first");
    }
    assert_eq!((m.kept(), m.state.find(1).unwrap().count), (1, 100));
    m.now += WINDOW;
    let later = m.take(&refusal);
    assert_eq!(later.audited_as.as_deref(), Some(" (A7 came 100 times)"));
    assert_eq!(later.number, 2);
    // Another's is another.
    assert_eq!(m.take(&told("b", "ROLE_NOT_ALLOWED", "no")).number, 3);
    assert_eq!(m.take(&told("a", "ROLE_NOT_ALLOWED", "not this either")).number, 4);
}

#[test]
fn one_client_fills_neither_memory_nor_audit_nor_anothers_place() {
    let mut m = Memory::new();
    let quiet = m.take(&told("quiet", "BUSY", "no room")).number;
    let flood = |m: &mut Memory| -> (u32, u32) {
        let all = (0..10_000).map(|i| m.take(&told("loud", "ROLE_NOT_ALLOWED", &format!("{i}"))));
        all.fold((0, 0), |(audited, logged), t| {
            (audited + u32::from(t.audited_as.is_some()), logged + u32::from(t.logged))
        })
    };
    assert_eq!(flood(&mut m), (AUDITED, LOGGED));
    assert_eq!(flood(&mut m), (0, 0));
    assert_eq!(m.kept(), OF_ONE_CLIENT + 1);
    assert!(m.state.find(quiet).is_some());
    m.now += WINDOW;
    assert_eq!(flood(&mut m), (AUDITED, LOGGED), "the next window");
}

#[test]
fn strangers_share_one_place_and_write_nothing() {
    let mut m = Memory::new();
    for i in 0..1000 {
        let taken = m.take(&told("", "ROLE_NOT_ALLOWED", &format!("{i}")));
        assert!(taken.audited_as.is_none());
    }
    assert_eq!((m.state.clients.len(), m.kept()), (1, OF_ONE_CLIENT));
}

#[test]
fn many_clients_cannot_begin_their_parts_of_the_audit_anew() {
    let mut m = Memory::new();
    let mut audited = 0;
    // In turn, so that each would have been pushed out when it comes again.
    for turn in 0..3 {
        for client in 0..CLIENTS * 2 {
            for i in 0..AUDITED {
                let refusal = told(&client.to_string(), "ROLE_NOT_ALLOWED", &format!("{turn} {i}"));
                audited += usize::from(m.take(&refusal).audited_as.is_some());
            }
        }
    }
    assert_eq!(audited, CLIENTS * AUDITED as usize);
    assert!(m.state.clients.len() <= CLIENTS + 1 && m.kept() <= (CLIENTS + 1) * OF_ONE_CLIENT);
    // Once they have been quiet, others find room.
    m.now += WINDOW;
    assert!(m.take(&told("late", "ROLE_NOT_ALLOWED", "no")).audited_as.is_some());
}

#[test]
fn what_says_nothing_of_the_caller_is_not_for_the_audit() {
    let mut m = Memory::new();
    for reason in ["BUSY", "DEADLINE", "UNKNOWN_METHOD", "STORE_UNAVAILABLE"] {
        assert!(m.take(&told("a", reason, "x")).audited_as.is_none(), "{reason}");
    }
    let invalid = Told {
        code: Code::InvalidArgument,
        ..told("a", "MALFORMED", "x")
    };
    assert!(m.take(&invalid).audited_as.is_some());
}

#[test]
fn texts_are_short_and_harmless() {
    let mut m = Memory::new();
    let rpc = format!("/\u{1b}[2J{}", "x".repeat(10_000));
    let taken = m.take(&Told {
        rpc,
        ..told("a", "UNKNOWN_METHOD", &"\n".repeat(5000))
    });
    let kept = &m.state.find(taken.number).unwrap().told;
    assert!(kept.rpc.starts_with("/\\u{1b}[2Jxx"));
    for text in [&kept.rpc, &kept.message] {
        assert_eq!(text.chars().count(), MAX_TEXT);
        assert!(!text.chars().any(char::is_control));
    }
}

/// Takes nothing but what is short and harmless.
#[derive(Debug)]
struct Strict;

impl Notary for Strict {
    fn note(&self, told: &Told) -> Noting {
        let texts = [told.who.name(), &told.rpc, &told.reason, &told.message, &told.request];
        let good = texts
            .iter()
            .all(|t| t.chars().count() <= MAX_TEXT && !t.chars().any(char::is_control));
        Box::pin(std::future::ready(good.then_some(1)))
    }
}

#[tokio::test]
async fn what_goes_to_the_audit_is_short_and_harmless_too() {
    let refusals = Refusals::new(Arc::new(Strict));
    let told = Told {
        request: "\u{1b}[2J".repeat(100),
        ..told("a\n", "ROLE_NOT_ALLOWED", &"\u{7}".repeat(5000))
    };
    assert_eq!(refusals.refer(told).await, "A1");
}

/// Gives numbers, or none.
#[derive(Debug)]
struct Book(Option<u64>);

impl Notary for Book {
    fn note(&self, _: &Told) -> Noting {
        Box::pin(std::future::ready(self.0))
    }
}

#[tokio::test]
async fn an_errors_response_gets_its_code_and_keeps_its_details() {
    for (number, code) in [(Some(12), "A12"), (None, "R")] {
        let refusals = Refusals::new(Arc::new(Book(number)));
        let mut details = answer::info("INVALID_ARGUMENT", [("field", "device_id".to_owned())]);
        details.add_bad_request_violation("device_id", "is \u{e9}");
        let status = Status::with_error_details(Code::InvalidArgument, "device_id: is \u{e9}", details);
        let who = told("a", "", "").who;
        let answered = refusals.refer_response(&who, "/x", status.into_http::<()>()).await;
        let status = Status::from_header_map(answered.headers()).unwrap();
        assert_eq!(
            (status.code(), status.message()),
            (Code::InvalidArgument, "device_id: is \u{e9}")
        );
        let info = status.get_details_error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("INVALID_ARGUMENT", "lazaret"));
        assert_eq!(info.metadata["field"], "device_id");
        assert!(info.metadata[REFERENCE].starts_with(code), "{info:?}");
        assert_eq!(status.get_details_bad_request().unwrap().field_violations.len(), 1);
        if let Some(number) = info.metadata[REFERENCE].strip_prefix('R') {
            assert_eq!(
                refusals.find(number.parse().unwrap()).unwrap().told.reason,
                "INVALID_ARGUMENT"
            );
        }
        // Who has a code keeps it.
        let again = refusals.refer_response(&who, "/y", answered).await;
        let again = Status::from_header_map(again.headers()).unwrap();
        assert_eq!(again.get_details_error_info().unwrap().metadata, info.metadata);
    }
}
