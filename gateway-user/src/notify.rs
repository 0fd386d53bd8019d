//! Tells systemd how the daemon stands (sd_notify(3)), so that units ordered after it start when it answers. Without systemd nothing happens.

use std::{
    env,
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
};

/// What can be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It enforces, and its sockets answer.
    Ready,
    /// It is going down.
    Stopping,
}

/// Tells it, if `NOTIFY_SOCKET` names a socket.
///
/// # Errors
/// The socket cannot be written to.
pub fn tell(state: State) -> io::Result<()> {
    env::var_os("NOTIFY_SOCKET").map_or(Ok(()), |socket| tell_at(&socket, state))
}

fn tell_at(socket: &OsStr, state: State) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let text: &[u8] = match state {
        State::Ready => b"READY=1",
        State::Stopping => b"STOPPING=1",
    };
    UnixDatagram::unbound()?.send_to_addr(text, &address).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_hears_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("lazaret-test-{}", std::process::id());
        let by_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        for (socket, listener) in [(path.into_os_string(), by_path), (format!("@{name}").into(), by_name)] {
            for (state, text) in [(State::Ready, "READY=1"), (State::Stopping, "STOPPING=1")] {
                tell_at(&socket, state).unwrap();
                let mut bytes = [0; 64];
                let n = listener.recv(&mut bytes).unwrap();
                assert_eq!(&bytes[..n], text.as_bytes());
            }
        }
        assert!(tell_at(OsStr::new("/nonexistent/notify"), State::Ready).is_err());
    }
}
