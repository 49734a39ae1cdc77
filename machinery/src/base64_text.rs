//! Base64 as the API's decoder reads it: line breaks are skipped, unused bits may be set, and what is wrong is told by the
//! place that the decoder names.

/// Which alphabet, and whether the last group is filled up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `+` and `/`, filled up with `=`.
    Standard,
    /// `-` and `_`, not filled up.
    UrlUnpadded,
}

fn digit(form: Form, byte: u8) -> Option<u32> {
    let (plus, slash) = if form == Form::Standard { (b'+', b'/') } else { (b'-', b'_') };
    Some(match byte {
        b'A'..=b'Z' => u32::from(byte - b'A'),
        b'a'..=b'z' => u32::from(byte - b'a') + 26,
        b'0'..=b'9' => u32::from(byte - b'0') + 52,
        b if b == plus => 62,
        b if b == slash => 63,
        _ => return None,
    })
}

/// Decodes a text; the error is the place of the first wrong byte.
pub fn decode(form: Form, text: &[u8]) -> Result<Vec<u8>, usize> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3 + 3);
    let mut at = 0;
    let skip = |at: &mut usize| {
        while matches!(text.get(*at), Some(b'\n' | b'\r')) {
            *at += 1;
        }
    };
    loop {
        let (mut group, mut count) = (0_u32, 0);
        let mut last = false;
        while count < 4 {
            skip(&mut at);
            let Some(byte) = text.get(at) else {
                match count {
                    0 => return Ok(out),
                    1 => return Err(at - count),
                    _ if form == Form::Standard => return Err(at - count),
                    _ => last = true,
                }
                break;
            };
            at += 1;
            if let Some(value) = digit(form, *byte) {
                group |= value << (18 - 6 * count);
                count += 1;
                continue;
            }
            if form != Form::Standard || *byte != b'=' || count < 2 {
                return Err(at - 1);
            }
            if count == 2 {
                skip(&mut at);
                match text.get(at) {
                    None => return Err(text.len()),
                    Some(b'=') => at += 1,
                    Some(_) => return Err(at - 1),
                }
            }
            skip(&mut at);
            if at < text.len() {
                return Err(at);
            }
            last = true;
            break;
        }
        let bytes = group.to_be_bytes();
        out.extend_from_slice(&bytes[1..count.clamp(1, 4)]);
        if last {
            return Ok(out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

    #[test]
    fn the_wrong_byte_is_named() {
        for (form, text, expected) in [
            (Form::Standard, "", Ok(&b""[..])),
            (Form::Standard, "aGk=", Ok(b"hi")),
            (Form::Standard, "aG\nk=\n", Ok(b"hi")),
            (Form::Standard, "b", Err(0)),
            (Form::Standard, "!", Err(0)),
            (Form::Standard, "aGkh!", Err(4)),
            (Form::Standard, "aGk", Err(0)),
            (Form::Standard, "aG=", Err(3)),
            (Form::Standard, "aGk=x", Err(4)),
            (Form::Standard, "a===", Err(1)),
            (Form::UrlUnpadded, "aGk", Ok(b"hi")),
            (Form::UrlUnpadded, "aGl", Ok(b"hi")),
            (Form::UrlUnpadded, "aGk=", Err(3)),
            (Form::UrlUnpadded, "aGkhx", Err(4)),
        ] {
            assert_eq!(decode(form, text.as_bytes()).as_deref(), expected.as_ref().map(|b| *b), "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_was_encoded_is_decoded(bytes: Vec<u8>) {
            proptest::prop_assert_eq!(decode(Form::Standard, STANDARD.encode(&bytes).as_bytes()), Ok(bytes.clone()));
            let url = URL_SAFE_NO_PAD.encode(&bytes);
            proptest::prop_assert_eq!(decode(Form::UrlUnpadded, url.as_bytes()), Ok(bytes));
        }

        #[test]
        fn any_text_is_decoded_or_refused(text: Vec<u8>) {
            let _ = decode(Form::Standard, &text);
        }
    }
}
