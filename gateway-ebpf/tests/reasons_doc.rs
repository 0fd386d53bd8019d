//! `docs/reasons.md` says what `reason.rs` says. `UPDATE=1 cargo test -p gateway-ebpf --test reasons_doc` writes it.

use std::fmt::Write as _;

use gateway_ebpf::reason::Reason;

#[test]
fn the_page_of_reasons_is_the_list() {
    let mut page = String::from(
        "# Reasons\n\nWhy a packet passed or was dropped, as counters, events, API and CLI name it. Numbers never change their meaning. \
         This page is generated from `gateway-ebpf/src/reason.rs`.\n\n| number | name | verdict | what happened | what to do |\n|---|---|---|---|---|\n",
    );
    for r in Reason::ALL {
        let verdict = if r.passes() { "pass" } else { "drop" };
        writeln!(
            page,
            "| {} | `{}` | {verdict} | {} | {} |",
            *r as u8,
            r.name(),
            r.sentence(),
            r.remedy()
        )
        .unwrap();
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reasons.md");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, &page).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap_or_default(), page, "run with UPDATE=1");
}
