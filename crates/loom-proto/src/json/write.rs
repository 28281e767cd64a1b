//! Values to text.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};

use bytes::Bytes;
use serde_json::value::RawValue;

use super::DEPTH;
use super::read::depth;
use super::table::{Attached, Enum, Hex, Id, Inline, Kind, Named, Object, Plain};
use crate::v1::{Packet, Payload};

#[derive(Default)]
pub(super) struct Out {
    pub(super) text: String,
    pub(super) attachments: Vec<Bytes>,
}

impl Out {
    pub(super) fn packet(&mut self, packet: &Packet) {
        let Packet {
            first,
            received,
            frames,
        } = packet;
        self.text.push('{');
        self.member::<Plain, _>("first", first);
        self.member::<Plain, _>("received", received);
        let here = self.text.len();
        self.name("frames");
        self.list(frames, |frame, out| out.object(frame));
        self.text.push('}');
        if !self.attachments.is_empty() {
            self.announce(here);
        }
    }

    /// Says how many attachments there are, before the frames: who reads on the fly knows what to wait for.
    fn announce(&mut self, at: usize) {
        let comma = if at > 1 { "," } else { "" };
        let rest = if at > 1 { "" } else { "," };
        let said = format!("{comma}\"attachments\":{}{rest}", self.attachments.len());
        self.text.insert_str(at, &said);
    }

    /// A member of the object that is open, unless it has its default.
    pub(super) fn member<K: Kind<T>, T>(&mut self, name: &str, value: &T) {
        if K::absent(value) {
            return;
        }
        self.name(name);
        K::write(value, self);
    }

    pub(super) fn name(&mut self, name: &str) {
        self.comma();
        self.quoted(name);
        self.text.push(':');
    }

    pub(super) fn object(&mut self, value: &impl Object) {
        self.text.push('{');
        value.write(self);
        self.text.push('}');
    }

    /// Between two items or members; no value ends with an opening bracket.
    fn comma(&mut self) {
        if !self.text.ends_with(['{', '[']) {
            self.text.push(',');
        }
    }

    fn list<T>(&mut self, items: &[T], mut write: impl FnMut(&T, &mut Self)) {
        self.text.push('[');
        for item in items {
            self.comma();
            write(item, self);
        }
        self.text.push(']');
    }

    fn shown(&mut self, value: impl Display) {
        // Writing to a String does not fail.
        let _ = write!(self.text, "{value}");
    }

    fn quoted(&mut self, value: &str) {
        self.text.push('"');
        let mut rest = value;
        while let Some(at) = rest.find(|c: char| c < ' ' || c == '"' || c == '\\') {
            let (plain, tail) = rest.split_at(at);
            self.text.push_str(plain);
            let mut chars = tail.chars();
            if let Some(c) = chars.next() {
                self.escaped(c);
            }
            rest = chars.as_str();
        }
        self.text.push_str(rest);
        self.text.push('"');
    }

    fn escaped(&mut self, c: char) {
        match c {
            '"' => self.text.push_str("\\\""),
            '\\' => self.text.push_str("\\\\"),
            '\n' => self.text.push_str("\\n"),
            '\t' => self.text.push_str("\\t"),
            '\r' => self.text.push_str("\\r"),
            _ => {
                let _ = write!(self.text, "\\u{:04x}", u32::from(c));
            }
        }
    }

    fn hex(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let _ = write!(self.text, "{byte:02x}");
        }
    }

    fn uuid(&mut self, id: &[u8]) {
        self.text.push('"');
        for (at, byte) in id.iter().enumerate() {
            if id.len() == 16 && matches!(at, 4 | 6 | 8 | 10) {
                self.text.push('-');
            }
            self.hex(&[*byte]);
        }
        self.text.push('"');
    }

    fn inline(&mut self, value: &Bytes) {
        match as_json(value) {
            Some(json) => self.text.push_str(json),
            None => self.quoted(&String::from_utf8_lossy(value)),
        }
    }

    fn attached(&mut self, data: &Bytes) {
        self.name("attachment");
        self.shown(self.attachments.len());
        self.attachments.push(data.clone());
    }
}

/// The text of a JSON value that may stand inline.
fn as_json(data: &Bytes) -> Option<&str> {
    if depth(data) > DEPTH {
        return None;
    }
    serde_json::from_slice::<&RawValue>(data)
        .ok()
        .map(RawValue::get)
}

/// What has one form in JSON.
pub(super) trait Value {
    fn absent(&self) -> bool;
    fn write(&self, out: &mut Out);
}

macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl Value for $number {
            fn absent(&self) -> bool {
                *self == 0
            }
            fn write(&self, out: &mut Out) {
                out.shown(self);
            }
        }
        impl Value for Vec<$number> {
            fn absent(&self) -> bool {
                self.is_empty()
            }
            fn write(&self, out: &mut Out) {
                out.list(self, |number, out| out.shown(number));
            }
        }
    )*};
}
numbers!(u32, u64);

impl Value for bool {
    fn absent(&self) -> bool {
        !*self
    }
    fn write(&self, out: &mut Out) {
        out.shown(self);
    }
}

impl Value for String {
    fn absent(&self) -> bool {
        self.is_empty()
    }
    fn write(&self, out: &mut Out) {
        out.quoted(self);
    }
}

impl Value for Vec<String> {
    fn absent(&self) -> bool {
        self.is_empty()
    }
    fn write(&self, out: &mut Out) {
        out.list(self, |text, out| out.quoted(text));
    }
}

impl Value for Option<u64> {
    fn absent(&self) -> bool {
        self.is_none()
    }
    fn write(&self, out: &mut Out) {
        out.shown(self.unwrap_or_default());
    }
}

impl Value for Option<bool> {
    fn absent(&self) -> bool {
        self.is_none()
    }
    fn write(&self, out: &mut Out) {
        out.shown(self.unwrap_or_default());
    }
}

/// What the mapping of protobuf to JSON calls a number that JSON has none of.
fn not_finite(number: f64) -> Option<&'static str> {
    match number {
        f64::INFINITY => Some("Infinity"),
        f64::NEG_INFINITY => Some("-Infinity"),
        _ if number.is_nan() => Some("NaN"),
        _ => None,
    }
}

impl Value for BTreeMap<String, f64> {
    fn absent(&self) -> bool {
        self.is_empty()
    }
    fn write(&self, out: &mut Out) {
        out.text.push('{');
        for (name, weight) in self {
            out.name(name);
            match not_finite(*weight) {
                Some(named) => {
                    out.text.push('"');
                    out.text.push_str(named);
                    out.text.push('"');
                }
                None => out.shown(weight),
            }
        }
        out.text.push('}');
    }
}

impl<T: Object> Value for Option<T> {
    fn absent(&self) -> bool {
        self.is_none()
    }
    fn write(&self, out: &mut Out) {
        if let Some(value) = self {
            out.object(value);
        }
    }
}

impl<T: Object> Value for Vec<T> {
    fn absent(&self) -> bool {
        self.is_empty()
    }
    fn write(&self, out: &mut Out) {
        out.list(self, |value, out| out.object(value));
    }
}

impl Plain {
    pub(super) fn write<T: Value>(value: &T, out: &mut Out) {
        value.write(out);
    }
}

impl Hex {
    pub(super) fn write(value: &Bytes, out: &mut Out) {
        out.text.push('"');
        out.hex(value);
        out.text.push('"');
    }
}

impl Id {
    pub(super) fn write(value: &Bytes, out: &mut Out) {
        out.uuid(value);
    }

    pub(super) fn write_all(values: &[Bytes], out: &mut Out) {
        out.list(values, |id, out| out.uuid(id));
    }
}

impl Inline {
    pub(super) fn write(value: &Bytes, out: &mut Out) {
        out.inline(value);
    }

    pub(super) fn write_all(values: &[Bytes], out: &mut Out) {
        out.list(values, |value, out| out.inline(value));
    }
}

impl Attached {
    pub(super) fn write(value: &Bytes, out: &mut Out) {
        out.text.push('{');
        out.attached(value);
        out.text.push('}');
    }
}

impl<E: Named> Enum<E> {
    pub(super) fn write(value: i32, out: &mut Out) {
        match E::name(value) {
            Some(name) => out.quoted(name),
            None => out.shown(value),
        }
    }
}

impl Object for Payload {
    fn write(&self, out: &mut Out) {
        let Self { data, content_type } = self;
        let json = match content_type.as_str() {
            "" | "application/json" => as_json(data),
            _ => None,
        };
        if let Some(json) = json {
            out.name("json");
            out.text.push_str(json);
            return;
        }
        if !data.is_empty() || !content_type.is_empty() {
            out.attached(data);
        }
        out.member::<Plain, _>("type", content_type);
    }

    fn read(&mut self, name: &str, raw: &str, from: &mut super::In) -> super::Result<()> {
        match name {
            "json" => self.data = Bytes::copy_from_slice(raw.as_bytes()),
            "attachment" => self.data = from.attachment(raw)?,
            "type" => self.content_type = super::read::text(raw)?,
            _ => {}
        }
        Ok(())
    }
}
