//! `[metrics]`: one place, on this host.

use super::*;

#[test]
fn it_listens_on_this_host_or_nowhere() {
    let of = |lines: &str| {
        let head = format!("[metrics]\n{lines}\n").leak();
        parse(&File { head, ..GOOD }.text()).map(|c| c.metrics)
    };
    assert_eq!(parse(&GOOD.text()).unwrap().metrics, None);
    let port = of("listen = \"127.0.0.1:9464\"").unwrap();
    assert_eq!(port, Some(Metrics::Port("127.0.0.1:9464".parse().unwrap())));
    assert!(of("listen = \"[::1]:9464\"").is_ok());
    let socket = of("listen = \"/run/m.sock\"\ngroup = \"prometheus\"").unwrap();
    let wanted = Metrics::Socket {
        path: "/run/m.sock".into(),
        group: Some("prometheus".to_owned()),
    };
    assert_eq!(socket, Some(wanted));
    for (lines, part) in [
        ("listen = \"0.0.0.0:9464\"", "reached from elsewhere"),
        ("listen = \"[::]:9464\"", "reached from elsewhere"),
        ("listen = \"192.0.2.1:9464\"", "reached from elsewhere"),
        ("listen = \"127.0.0.1:0\"", "port 0"),
        ("", "[metrics] has no listen"),
        ("group = \"prometheus\"", "[metrics] has no listen"),
        ("listen = \"run/m.sock\"", "is not an address"),
        (
            "listen = \"127.0.0.1:9464\"\ngroup = \"prometheus\"",
            "only a socket has a group",
        ),
        ("adress = \"127.0.0.1:9464\"", "unknown key"),
    ] {
        let errors = of(lines).unwrap_err().to_string();
        assert!(errors.contains(part), "{lines}: {errors}");
    }
}
