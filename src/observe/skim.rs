//! A page of which little is wanted: lines of other names are checked, and not taken apart.
//!
//! A server's page has hundreds of series and a signal map asks for a handful. A page that is wrong
//! anywhere is refused as a whole all the same, so nothing may be skipped unseen. What is quick is
//! to recognise the one form in which servers write their lines, most of all in a line that begins
//! like the one before it; every other line is left to the strict reader.

use memchr::memchr2;

use crate::bounds::LABELS_MAX;
use crate::observe::exposition::Format;
use crate::observe::exposition::Sample;
use crate::observe::exposition::Samples;
use crate::observe::exposition::SyntaxError;

/// The samples of a page that have a wanted name, maybe some others, and the first mistake.
#[derive(Clone, Debug)]
pub struct Skimmed<'a, F> {
    samples: Samples<'a>,
    wanted: F,
    last: Last<'a>,
}

/// The last line that was looked at, as far as it was found right.
#[derive(Clone, Debug, Default)]
struct Last<'a> {
    line: &'a [u8],
    /// Length of its name; zero while there is none.
    name: usize,
    wanted: bool,
    /// Where its labels after the first begin.
    labels: Vec<usize>,
}

// === impl Skimmed ===

impl<'a, F: Fn(&str) -> bool> Skimmed<'a, F> {
    /// # Errors
    /// As of [`Samples::new`].
    pub fn new(page: &'a [u8], format: Format, wanted: F) -> Result<Skimmed<'a, F>, SyntaxError> {
        Ok(Skimmed { samples: Samples::new(page, format)?, wanted, last: Last::default() })
    }
}

impl<'a, F: Fn(&str) -> bool> Iterator for Skimmed<'a, F> {
    type Item = Result<Sample<'a>, SyntaxError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (line, content) = match self.samples.content()? {
                Ok(found) => found,
                Err(error) => return Some(Err(error)),
            };
            if !self.last.skips(content, &self.wanted) {
                return Some(self.samples.read(line, content));
            }
        }
    }
}

// === impl Last ===

impl<'a> Last<'a> {
    /// Whether a line is a sample beyond doubt, and of a name that nobody wants.
    fn skips(&mut self, text: &'a str, wanted: impl Fn(&str) -> bool) -> bool {
        let line = text.as_bytes();
        let same = common(self.line, line);
        self.line = line;
        // What ended the name then ends it now.
        if self.name == 0 || same <= self.name {
            self.labels.clear();
            self.name = name(line, true).unwrap_or(0);
            self.wanted = text.get(..self.name).is_none_or(&wanted);
        }
        if self.name == 0 || self.wanted {
            return false;
        }
        while self.labels.last().is_some_and(|begin| *begin > same) {
            self.labels.pop();
        }
        self.value(line).is_some_and(is_end)
    }

    /// What follows the name and the labels of a line, where they are plain.
    fn value(&mut self, line: &'a [u8]) -> Option<&'a [u8]> {
        let mut rest = match self.labels.last() {
            Some(begin) => line.get(*begin..)?,
            None => match line.get(self.name..)?.split_first()? {
                (b' ', rest) => return Some(rest),
                (b'{', rest) => rest,
                _ => return None,
            },
        };
        loop {
            let (_, after) = rest.split_at_checked(name(rest, false)?)?;
            let after = after.strip_prefix(b"=\"")?;
            let (end, after) = after.split_at_checked(memchr2(b'"', b'\\', after)?)?.1.split_first()?;
            if *end != b'"' {
                return None;
            }
            match after.split_first()? {
                (b',', after) => rest = after,
                (b'}', after) => return after.strip_prefix(b" "),
                _ => return None,
            }
            self.labels.push(line.len() - rest.len());
            if self.labels.len() >= LABELS_MAX {
                return None;
            }
        }
    }
}

/// How many bytes two lines begin with alike.
fn common(a: &[u8], b: &[u8]) -> usize {
    let (long_a, long_b) = (a.as_chunks::<8>().0, b.as_chunks::<8>().0);
    let whole = 8 * long_a.iter().zip(long_b).take_while(|(a, b)| a == b).count();
    let rest = a.iter().zip(b).skip(whole);
    whole + rest.take_while(|(a, b)| a == b).count()
}

/// The length of the name that a text begins with; none where it begins with none.
fn name(text: &[u8], colons: bool) -> Option<usize> {
    let first = text.first()?;
    if first.is_ascii_digit() {
        return None;
    }
    let other = |byte: &u8| !(byte.is_ascii_alphanumeric() || *byte == b'_' || colons && *byte == b':');
    text.iter().position(other).filter(|length| *length > 0)
}

/// A value, and nothing but a timestamp behind it.
fn is_end(text: &[u8]) -> bool {
    match text.iter().position(|byte| *byte == b' ') {
        None => is_number(text),
        Some(end) => {
            let (value, stamp) = text.split_at_checked(end).unwrap_or_default();
            is_number(value) && stamp.strip_prefix(b" ").is_some_and(is_number)
        }
    }
}

fn is_number(word: &[u8]) -> bool {
    // Nearly all are counts, and need not be computed to be known as numbers.
    let digits = word.iter().take_while(|byte| byte.is_ascii_digit()).count();
    digits > 0 && digits == word.len() || fast_float2::parse::<f64, _>(word).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: [&[u8]; 4] = [
        include_bytes!("../../tests/captures/vllm-0.32.0-under-load.prom"),
        include_bytes!("../../tests/captures/llamacpp-under-load.prom"),
        include_bytes!("../../tests/captures/prometheus-2.42-self.prom"),
        include_bytes!("../../tests/captures/dynamo-frontend-documented.prom"),
    ];

    /// What is found of wanted names, or why the page is refused.
    type Found = Result<Vec<String>, SyntaxError>;

    fn found<'a>(
        samples: Result<impl Iterator<Item = Result<Sample<'a>, SyntaxError>>, SyntaxError>,
        wanted: impl Fn(&str) -> bool,
    ) -> Found {
        let mut found = Vec::new();
        for sample in samples? {
            let sample = sample?;
            if wanted(sample.name) {
                found.push(format!("{sample:?}"));
            }
        }
        Ok(found)
    }

    fn both(page: &[u8], format: Format, wanted: impl Fn(&str) -> bool + Copy) -> Found {
        let strict = found(Samples::new(page, format), wanted);
        assert_eq!(
            found(Skimmed::new(page, format, wanted), wanted),
            strict,
            "{}",
            String::from_utf8_lossy(page)
        );
        strict
    }

    fn some(name: &str) -> bool {
        name.len().is_multiple_of(7)
    }

    #[test]
    fn real_pages_are_mostly_skipped_and_give_the_same() {
        for page in PAGES {
            let strict = both(page, Format::Text, some).unwrap();
            let samples = Samples::new(page, Format::Text).unwrap().count();
            let read = Skimmed::new(page, Format::Text, some).unwrap().count();
            // What is left to the strict reader is what is wanted, and little else.
            assert!(read <= strict.len() + samples / 10, "{read} of {samples}, wanted {}", strict.len());
        }
    }

    #[test]
    fn every_form_and_mistake_of_a_line_is_judged_as_the_strict_reader_does() {
        let forms = [
            "up 1",
            "up{} 1",
            "up{a=\"b\"} 1",
            "up{a=\"b\",} 1",
            "up{a=\"b\", c=\"d\"} 1",
            "up{a=\"\\n\"} 1",
            "up{a=\"b\",c=\"}\"} 1",
            "up{a=\"b\"}1",
            "up{a=\"b\"}  1",
            "up 1 5",
            "up 1 5 6",
            "up 1 ",
            "up",
            "up ",
            "up .5",
            "up 5.",
            "up 1..5",
            "up .",
            "up -1",
            "up +Inf",
            "up NaN",
            "up nan5",
            "up 1e5",
            "up 0x5",
            "up 1_000",
            "up\t1",
            "up 1\t5",
            "9up 1",
            "{a=\"b\"} 1",
            "up{9a=\"b\"} 1",
            "up{a:b=\"c\"} 1",
            "up{a=b} 1",
            "up{a=\"b} 1",
            "up{a=\"\\q\"} 1",
            "up{a=\"b\";c=\"d\"} 1",
            "up{a=\"b\"",
            "up{a=\"b\",",
            "up 1 # {a=\"b\"} 2",
            "# EOF",
            "#",
            "",
            " up 1",
            "\u{fc}p 1",
            "up{a=\"\u{fc}\"} 1",
            "up 1\r",
            "a:b 1",
        ];
        let wide = |labels: usize| {
            let labels: Vec<String> = (0..labels).map(|at| format!("l{at}=\"1\"")).collect();
            format!("up{{{}}} 1", labels.join(","))
        };
        let (full, over) = (wide(LABELS_MAX), wide(LABELS_MAX + 1));
        let forms: Vec<&str> = forms.into_iter().chain([full.as_str(), over.as_str()]).collect();
        let mut good = 0;
        // Each behind each: what is known of the line before must not be believed of another.
        for first in &forms {
            for second in &forms {
                let page = format!("{first}\n{second}\n{first}\n");
                for format in [Format::Text, Format::OpenMetrics] {
                    for wanted in [|_: &str| false, |name: &str| name == "up"] {
                        good += u32::from(both(page.as_bytes(), format, wanted).is_ok());
                    }
                }
            }
        }
        assert!(good > 500, "{good}");
    }

    #[test]
    fn no_edit_of_a_real_page_is_judged_otherwise() {
        let mut seed = 3u64;
        let mut draw = |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % below
        };
        let mut refused = 0;
        for turn in 0..12_000 {
            let lines: Vec<&[u8]> =
                PAGES[turn % PAGES.len()].split_inclusive(|byte| *byte == b'\n').collect();
            let first = draw(lines.len().saturating_sub(10).max(1));
            let mut page = lines[first..lines.len().min(first + 10)].concat();
            for _ in 0..=draw(2) {
                let at = draw(page.len());
                let byte = *b"{}\",\\= \n#:0aeE.+-_\t\r\xff".get(draw(21)).unwrap();
                match draw(3) {
                    0 => page[at] = byte,
                    1 => page.insert(at, byte),
                    _ => drop(page.remove(at)),
                }
            }
            refused += u32::from(both(&page, Format::Text, some).is_err());
        }
        assert!((3_000..11_000).contains(&refused), "{refused}");
    }
}
