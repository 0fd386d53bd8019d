//! How messages are encoded and decoded: as [`tonic_prost`] does it, but that a message is looked at before it is taken apart. Two bytes are an
//! empty element of a list, which takes a hundred times as much memory: a message within its limit could take the process's. It knows no
//! message by name.

use std::marker::PhantomData;

use prost::Message;
use tonic::{
    Status,
    codec::{BufferSettings, DecodeBuf, Decoder},
};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// Fields that a message may have, however small they are. More than these have [`LEAST`] bytes each on average.
const FREE: usize = 1024;
/// Bytes. Whatever the API takes in lists has names and addresses in it, which are more.
const LEAST: usize = 16;
/// Strings and messages that there may be within those fields, however small they are: a megabyte at most. Numbers are part of their message.
const FREE_WITHIN: usize = 16_384;
/// Bytes of the whole message for each, if there are more. A session of a list has three or more within some twenty bytes.
const LEAST_WITHIN: usize = 6;
/// How deep is looked below what is in a field. No message has others so deep in it, nor has any message itself in it.
const DEEPEST: usize = 6;

/// The codec of all services.
#[derive(Debug)]
pub struct Codec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> tonic::codec::Codec for Codec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = Careful<U>;

    fn encoder(&mut self) -> ProstEncoder<T> {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::default())
    }

    fn decoder(&mut self) -> Careful<U> {
        Careful(ProstCodec::<T, U>::raw_decoder(BufferSettings::default()))
    }
}

/// Decodes what is worth its memory.
#[derive(Debug)]
pub struct Careful<U>(ProstDecoder<U>);

impl<U: Message + Default> Decoder for Careful<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // A message is in one piece here.
        let message = bytes::Buf::chunk(from);
        if is_padded(message) {
            // As tonic says it of what is no message.
            return Err(Status::internal("the message has more fields than bytes to fill them"));
        }
        self.0.decode(from)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

/// Whether a message has far more fields than it has content: of its own, or strings and messages within those. What is no message is found by
/// decoding it.
fn is_padded(mut rest: &[u8]) -> bool {
    if rest.len() <= FREE {
        return false;
    }
    let most = FREE.max(rest.len() / LEAST);
    let mut room = FREE_WITHIN.max(rest.len() / LEAST_WITHIN);
    for _ in 0..=most {
        let Some((content, after)) = field(rest) else { return false };
        if content.is_some_and(|c| !has_room(c, &mut room, DEEPEST)) {
            return true;
        }
        rest = after;
    }
    true
}

/// Whether there is room for what a field would have in it if it were a message. A text that reads as one has few: a letter of it is a length.
fn has_room(mut rest: &[u8], room: &mut usize, deeper: usize) -> bool {
    while let Some((content, after)) = field(rest) {
        rest = after;
        let Some(content) = content else { continue };
        if *room == 0 {
            return false;
        }
        *room -= 1;
        if deeper > 0 && !has_room(content, room, deeper - 1) {
            return false;
        }
    }
    true
}

/// What a field has in it, if it is of a length of its own, and what follows it; `None`: there is none, or it is none.
fn field(from: &[u8]) -> Option<(Option<&[u8]>, &[u8])> {
    let (tag, rest) = varint(from)?;
    let after = match tag & 7 {
        0 => varint(rest)?.1,
        1 => rest.get(8..)?,
        2 => {
            let (length, rest) = varint(rest)?;
            let (content, after) = rest.split_at_checked(usize::try_from(length).ok()?)?;
            return Some((Some(content), after));
        }
        // A group begins or ends: what is in it counts by itself.
        3 | 4 => rest,
        5 => rest.get(4..)?,
        _ => return None,
    };
    Some((None, after))
}

fn varint(from: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (i, byte) in from.iter().enumerate().take(10) {
        value |= u64::from(byte & 127) << (7 * i);
        if byte & 128 == 0 {
            return Some((value, from.get(i + 1..)?));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1;

    #[test]
    fn what_the_api_takes_in_lists_is_taken() {
        let devices = (0..5000).map(|i| v1::DeviceRegistration {
            device_id: format!("{i:04}-berlin-phone"),
            ..Default::default()
        });
        let registration = v1::RegisterDevicesRequest {
            context: None,
            devices: devices.collect(),
        };
        assert!(!is_padded(&registration.encode_to_vec()));
        let sessions = (0..65_536_u32).map(|i| v1::SessionReport {
            device_name: format!("d{i}"),
            prefixes: vec!["10.0.0.1".into()],
            interface: "t".into(),
            ..Default::default()
        });
        let list = v1::SynchroniseSessionsRequest {
            sessions: sessions.collect(),
            ..Default::default()
        };
        assert!(!is_padded(&list.encode_to_vec()));
        let short = v1::RenewLeasesRequest {
            context: None,
            device_ids: (0..1000).map(|i| i.to_string()).collect(),
        };
        assert!(!is_padded(&short.encode_to_vec()));
        assert!(!is_padded(&[]));
    }

    #[test]
    fn what_is_mostly_fields_is_not() {
        // `devices`, empty.
        let empty = [0x12, 0x00];
        assert!(!is_padded(&empty.repeat(FREE)));
        assert!(is_padded(&empty.repeat(FREE + 1)));
        assert!(is_padded(&empty.repeat(2 << 20)));
        // Unknown numbers and every kind of field.
        for field in [
            &[0x7a, 0x01, 0x00][..],
            &[0x08, 0x80, 0x01],
            &[0x0d, 0, 0, 0, 0],
            &[0x09, 0, 0, 0, 0, 0, 0, 0, 0],
        ] {
            assert!(is_padded(&field.repeat(4000)), "{field:?}");
        }
        // Bytes that are no message: nothing is made of them anyway.
        assert!(!is_padded(&[0xff; 100_000]));
        assert!(!is_padded(&[0x0e; 100_000]));
    }

    #[test]
    fn what_is_mostly_fields_within_is_not() {
        let device = |names: usize| v1::DeviceRegistration {
            device_id: "one".into(),
            aliases: Some(v1::Aliases {
                common_names: vec![String::new(); names],
                ..Default::default()
            }),
            ..Default::default()
        };
        let list = |devices: Vec<v1::DeviceRegistration>| {
            let request = v1::RegisterDevicesRequest { context: None, devices };
            request.encode_to_vec()
        };
        assert!(!is_padded(&list(vec![device(16_000)])));
        assert!(is_padded(&list(vec![device(17_000)])), "in one");
        assert!(is_padded(&list(vec![device(2 << 20)])));
        assert!(is_padded(&list(vec![device(64); 1000])), "in many");
        let names: Vec<String> = (0..64).map(|i| format!("laptop-{i:02}")).collect();
        let mut honest = device(0);
        honest.aliases = Some(v1::Aliases {
            common_names: names,
            ..Default::default()
        });
        assert!(!is_padded(&list(vec![honest; 1000])));
        // Text of any letter is no message with much in it.
        for letter in b' '..=b'~' {
            let mut text = device(0);
            text.owner = char::from(letter).to_string().repeat(1 << 20);
            assert!(!is_padded(&list(vec![text])), "{letter}");
        }
    }

    /// Where what is no message ends, what came before it has been made already.
    #[test]
    fn a_broken_end_hides_nothing() {
        let mut message = [0x12, 0x00].repeat(2 << 20);
        message.push(0x0e);
        assert!(is_padded(&message));
        // A group of a number that nobody knows, in front, behind and around.
        let group = |inside: &[u8]| [&[0x7b], inside, &[0x7c]].concat();
        assert!(is_padded(&[group(&[]), message.clone()].concat()));
        assert!(is_padded(&group(&message)));
        assert!(is_padded(&[0x7b, 0x7c].repeat(4000)));
    }
}
