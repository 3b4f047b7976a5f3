//! The page of a run, as Chromium draws it with no network: every curve is there, in light and in
//! dark. Where no Chromium is installed it is not looked at, and says so.
#![allow(clippy::indexing_slicing, reason = "a broken picture ends the test")]

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const BROWSERS: [&str; 3] = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
/// The browser is looked after this often, and this many times.
const LOOK_EVERY: Duration = Duration::from_millis(50);
const LOOKS_MAX: usize = 2400;
/// Of budget and three tiers, as `--c1` to `--c4` of the page.
const LIGHT: [u32; 4] = [0xd9_8c_00, 0x00_72_b2, 0x00_9e_73, 0xc2_57_9a];
const DARK: [u32; 4] = [0xe6_9f_00, 0x56_b4_e9, 0x2f_c4_9a, 0xdd_8f_c0];
/// A curve across a plot is 880 wide; the keys of two laws are less than a quarter of this.
const PIXELS_MIN: usize = 800;

/// Red, green and blue of every pixel of an 8-bit PNG without interlacing (RFC 2083, 6 and 9).
fn pixels(png: &[u8]) -> Vec<u32> {
    let long = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap()) as usize;
    assert_eq!(&png[..8], b"\x89PNG\r\n\x1a\n");
    let (wide, depth, kind) = (long(16), png[24], png[25]);
    assert!(depth == 8 && (kind == 2 || kind == 6), "{depth} bits of kind {kind}");
    let (mut at, mut packed) = (8, Vec::new());
    while at < png.len() {
        let size = long(at);
        if &png[at + 4..at + 8] == b"IDAT" {
            packed.extend_from_slice(&png[at + 8..at + 8 + size]);
        }
        at += size + 12;
    }
    let mut raw = Vec::new();
    flate2::read::ZlibDecoder::new(&packed[..]).read_to_end(&mut raw).unwrap();
    let each = if kind == 6 { 4 } else { 3 };
    let (mut above, mut found) = (vec![0u8; wide * each], Vec::new());
    for row in raw.chunks(wide * each + 1) {
        let mut line = row[1..].to_vec();
        for at in 0..line.len() {
            let (a, c) = if at >= each { (line[at - each], above[at - each]) } else { (0, 0) };
            let b = above[at];
            line[at] = line[at].wrapping_add(match row[0] {
                0 => 0,
                1 => a,
                2 => b,
                3 => ((u16::from(a) + u16::from(b)) / 2) as u8,
                _ => paeth(a, b, c),
            });
        }
        found.extend(line.chunks(each).map(|rgb| u32::from_be_bytes([0, rgb[0], rgb[1], rgb[2]])));
        above = line;
    }
    found
}

fn paeth(a: u8, b: u8, c: u8) -> u8 {
    let guess = i16::from(a) + i16::from(b) - i16::from(c);
    let off = |of: u8| (guess - i16::from(of)).abs();
    if off(a) <= off(b) && off(a) <= off(c) {
        a
    } else if off(b) <= off(c) {
        b
    } else {
        c
    }
}

fn near(pixel: u32, colour: u32) -> bool {
    pixel.to_be_bytes().iter().zip(colour.to_be_bytes()).all(|(a, b)| a.abs_diff(b) < 48)
}

fn screenshot(browser: &str, page: &Path, dark: bool) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("page.png");
    let mut child = Command::new(browser)
        .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1100,1700"])
        .args(["--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9"])
        .arg(format!("--blink-settings=preferredColorScheme={}", u8::from(!dark)))
        .arg(format!("--user-data-dir={}", directory.path().join("profile").display()))
        .arg(format!("--screenshot={}", image.display()))
        .arg(format!("file://{}", page.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut looks = 0;
    while child.try_wait().unwrap().is_none() {
        looks += 1;
        if looks > LOOKS_MAX {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{browser} drew nothing in two minutes");
        }
        std::thread::sleep(LOOK_EVERY);
    }
    fs::read(&image).unwrap()
}

#[test]
fn the_page_of_a_run_shows_every_curve_without_a_network() {
    let directory = tempfile::tempdir().unwrap();
    let page = directory.path().join("page.html");
    let scenario = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios/halving.yaml");
    let page_name = page.to_str().unwrap();
    let output = super::simulate(&[
        scenario.to_str().unwrap(),
        "--law",
        "tide",
        "--law",
        "aimd/x0.9",
        "--report",
        page_name,
    ]);
    assert!(output.status.success(), "{output:?}");
    let text = fs::read_to_string(&page).unwrap();
    assert!(text.contains("<h2>tide</h2>") && text.contains("<h2>aimd/x0.9</h2>"));
    let Some(browser) = BROWSERS.iter().find(|path| Path::new(path).exists()) else {
        eprintln!("no Chromium here: the page is not drawn");
        return;
    };
    for (dark, colours) in [(false, LIGHT), (true, DARK)] {
        let pixels = pixels(&screenshot(browser, &page, dark));
        let paper = if dark { 0x16_18_1c } else { 0xff_ff_ff };
        let of = |colour| pixels.iter().filter(|pixel| near(**pixel, colour)).count();
        assert!(of(paper) > pixels.len() / 2, "dark {dark}: the paper has another colour");
        for colour in colours {
            assert!(of(colour) > PIXELS_MIN, "dark {dark}: {colour:06x} is on {} pixels", of(colour));
        }
    }
}
