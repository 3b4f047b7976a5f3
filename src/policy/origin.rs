//! Which source a pool's fields name, and how it is reached.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Uri;

use crate::bounds::EXPRESSION_BYTES_MAX;
use crate::bounds::PROMETHEUS_SERVERS_MAX;
use crate::policy::diagnostic::{Place, Placed};
use crate::policy::pool::{accept, within};
use crate::policy::preset::Preset;
use crate::policy::report::Report;
use crate::policy::shape::{Group, PoolShape, Text};
use crate::policy::source::{Access, DNS_REFRESH, Login, SourcePolicy, Targets, Tls};
use crate::policy::value;

pub const AUTHORIZATION_FIELDS: [&str; 2] = ["type", "credentials_file"];
pub const BASIC_AUTH_FIELDS: [&str; 2] = ["username", "password_file"];
pub const TLS_FIELDS: [&str; 4] = ["ca_file", "cert_file", "key_file", "server_name"];

/// Least and most time between two lookups of a name.
const DNS_REFRESHES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3_600)];

/// The one source of a pool.
pub fn source(
    name: &Text,
    shape: &PoolShape,
    preset: Option<&Preset>,
    report: &mut Report,
) -> Option<SourcePolicy> {
    let access = access(shape, report);
    let direct = [&shape.targets, &shape.file_sd, &shape.dns].into_iter().flatten().next();
    match (&shape.prometheus, direct) {
        (Some(list), None) => {
            let servers = servers(list, report)?;
            Some(SourcePolicy::Prometheus { servers, access: access? })
        }
        (None, Some(_)) => {
            let path = preset.map(|preset| preset.path.to_owned()).unwrap_or_default();
            let fixed = shape.targets.as_ref().map(|list| targets(list, report));
            let file_sd = shape.file_sd.as_ref().map(|list| file_sd(list, report));
            let dns = shape.dns.as_ref().map(|list| dns(list, shape.tls.as_ref(), report));
            let dns_refresh = dns_refresh(shape, report);
            let targets = Targets {
                fixed: fixed.unwrap_or(Some(Vec::new()))?,
                file_sd: file_sd.unwrap_or(Some(Vec::new()))?,
                dns: dns.unwrap_or(Some(Vec::new()))?,
                dns_refresh: dns_refresh?,
                path,
            };
            Some(SourcePolicy::Direct { targets, access: access? })
        }
        (Some(list), Some(other)) => {
            let message = format!("pool `{}` has both `prometheus` and targets", name.value);
            let also = (&other.place, "the other source");
            report.error_and(&list.place, also, message, "keep the one that its load is to be read from");
            None
        }
        (None, None) => {
            let message = format!("pool `{}` has no source", name.value);
            let help = "write `targets: [http://HOST:8000/metrics, ..]`, `file_sd: [PATH]`, `dns: [NAME:PORT]` or \
                        `prometheus: http://HOST:9090`";
            report.error(&name.place, message, help);
            None
        }
    }
}

fn servers(list: &Placed<Vec<Text>>, report: &mut Report) -> Option<Vec<String>> {
    if list.value.len() > PROMETHEUS_SERVERS_MAX {
        let message = format!("{} Prometheus servers for one pool", list.value.len());
        let help = "several are replicas of each other that scrape the same targets; name at most 4";
        report.error(&list.place, message, help);
        return None;
    }
    let mut once =
        Once::new("a Prometheus is written twice", "keep one: two are asked for each other's sake");
    all(list, |text| {
        let url = url(text, report)?;
        if url.contains('?') {
            let help = "write the server's base URL: `http://HOST:9090`";
            report.error(&text.place, "a query in the URL of a Prometheus", help);
            return None;
        }
        once.take(url.trim_end_matches('/'), text, report)
    })
}

fn targets(list: &Placed<Vec<Text>>, report: &mut Report) -> Option<Vec<String>> {
    let help = "a replica counted twice would double the capacity; keep one";
    let mut once = Once::new("a target is written twice", help);
    all(list, |text| {
        let url = url(text, report)?;
        once.take(&url, text, report)
    })
}

fn file_sd(list: &Placed<Vec<Text>>, report: &mut Report) -> Option<Vec<String>> {
    let mut once = Once::new("a file is written twice", "keep one");
    all(list, |text| {
        let path = path(text, report)?;
        let known = [".json", ".yml", ".yaml"].iter().any(|ending| path.ends_with(ending));
        let (before, last) = path.rsplit_once('/').unwrap_or_default();
        if !known || before.contains('*') || last.matches('*').count() > 1 {
            let help =
                "write a path that ends in `.json`, `.yml` or `.yaml`; its last segment may hold one `*`";
            report.error(&text.place, "not the path of a `file_sd` file", help);
            return None;
        }
        once.take(&path, text, report)
    })
}

fn dns(list: &Placed<Vec<Text>>, tls: Option<&Group>, report: &mut Report) -> Option<Vec<String>> {
    let mut once = Once::new("a name is written twice", "keep one; each of its addresses is a replica");
    all(list, |text| {
        let whole =
            if text.value.contains("://") { text.value.clone() } else { format!("http://{}", text.value) };
        let checked = url(&Placed { value: whole, place: text.place.clone() }, report)?;
        let uri: Option<Uri> = checked.parse().ok();
        if uri.as_ref().and_then(Uri::port_u16).is_none() || checked.contains('?') {
            let help = "write `dns: [NAME:PORT]`, or a URL with a port: `https://NAME:8443/metrics`";
            report.error(&text.place, "a name without a port", help);
            return None;
        }
        let named = tls.is_some_and(|tls| field(tls, "server_name").is_some());
        if uri.and_then(|uri| uri.scheme_str().map(str::to_owned)).as_deref() == Some("https") && !named {
            let help =
                "an address has no name to check a certificate against: write `tls: {server_name: NAME}`";
            report.error(&text.place, "https to addresses from DNS without a `server_name`", help);
            return None;
        }
        once.take(&text.value, text, report)
    })
}

fn dns_refresh(shape: &PoolShape, report: &mut Report) -> Option<Duration> {
    let Some(text) = &shape.dns_refresh else { return Some(DNS_REFRESH) };
    if shape.dns.is_none() {
        report.error(&text.place, "`dns_refresh` without `dns`", "remove it: no name is looked up");
        return None;
    }
    let parsed = accept(text, value::duration(&text.value), report)?;
    within(text, parsed, DNS_REFRESHES, "names are looked up every 1s to 60m", report)
}

fn access(shape: &PoolShape, report: &mut Report) -> Option<Access> {
    let login = login(shape, report);
    let tls = match &shape.tls {
        Some(group) => tls(group, report),
        None => Some(Tls::default()),
    };
    Some(Access { login: login?, tls: tls? })
}

#[expect(clippy::option_option, reason = "refused, none, or one")]
fn login(shape: &PoolShape, report: &mut Report) -> Option<Option<Login>> {
    match (&shape.authorization, &shape.basic_auth) {
        (None, None) => Some(None),
        (Some(token), None) => {
            let file = required(token, "credentials_file", "the file that holds the token", report);
            let kind = field(token, "type").map_or("Bearer", |kind| kind.value.as_str());
            if kind.is_empty() || !kind.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
                let help = "write the scheme's name, `Bearer` unless stated";
                report.error(&token.place, "`type` is not the name of a scheme", help);
                return None;
            }
            if kind.eq_ignore_ascii_case("basic") {
                let help = "write `basic_auth: {username: NAME, password_file: PATH}`";
                report.error(&token.place, "`Basic` is not a token", help);
                return None;
            }
            Some(Some(Login::Token { kind: kind.to_owned(), file: path(file?, report)? }))
        }
        (None, Some(basic)) => {
            let username = required(basic, "username", "the name to log in with", report);
            let file = required(basic, "password_file", "the file that holds the password", report);
            let (username, file) = (username?, path(file?, report)?);
            if username.value.contains(':') || username.value.chars().any(char::is_control) {
                report.error(&username.place, "a user name with a `:` in it", "basic auth cannot express it");
                return None;
            }
            Some(Some(Login::Basic { username: username.value.clone(), password_file: file }))
        }
        (Some(token), Some(basic)) => {
            let also = (&basic.place, "the other");
            let message = "both `authorization` and `basic_auth`";
            report.error_and(&token.place, also, message, "a request carries one login; keep one");
            None
        }
    }
}

fn tls(group: &Group, report: &mut Report) -> Option<Tls> {
    let mut file = |name| match field(group, name) {
        Some(text) => path(text, report).map(Some),
        None => Some(None),
    };
    let (ca_file, cert_file, key_file) = (file("ca_file"), file("cert_file"), file("key_file"));
    let (ca_file, cert_file, key_file) = (ca_file?, cert_file?, key_file?);
    if cert_file.is_some() != key_file.is_some() {
        let help = "a client certificate takes both `cert_file` and `key_file`";
        report.error(&group.place, "one of `cert_file` and `key_file` without the other", help);
        return None;
    }
    let server_name = field(group, "server_name");
    if let Some(name) = server_name {
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '_');
        if name.value.is_empty() || !name.value.chars().all(known) {
            let help = "write a host name or an address, without scheme, port or brackets";
            report.error(&name.place, "`server_name` is not a name", help);
            return None;
        }
    }
    Some(Tls { ca_file, cert_file, key_file, server_name: server_name.map(|name| name.value.clone()) })
}

fn field<'a>(group: &'a Group, name: &str) -> Option<&'a Text> {
    group.value.get(name)
}

fn required<'a>(group: &'a Group, name: &str, what: &str, report: &mut Report) -> Option<&'a Text> {
    let found = field(group, name);
    if found.is_none() {
        report.error(&group.place, format!("there is no `{name}`"), format!("name {what}: `{name}: ..`"));
    }
    found
}

/// Absolute: a policy is also started from its copy, which lies elsewhere.
fn path(text: &Text, report: &mut Report) -> Option<String> {
    let good = text.value.starts_with('/') && text.value.len() <= EXPRESSION_BYTES_MAX;
    if !good || text.value.chars().any(char::is_control) {
        report.error(&text.place, "not an absolute path", "write it from the root: `/run/secrets/NAME`");
        return None;
    }
    Some(text.value.clone())
}

/// All of a list, or none when any was refused; every one is looked at.
fn all<'a>(
    list: &'a Placed<Vec<Text>>,
    check: impl FnMut(&'a Text) -> Option<String>,
) -> Option<Vec<String>> {
    let checked: Vec<Option<String>> = list.value.iter().map(check).collect();
    checked.into_iter().collect()
}

/// Refuses what is written twice.
struct Once<'a> {
    first: BTreeMap<String, &'a Place>,
    message: &'static str,
    help: &'static str,
}

// === impl Once ===

impl<'a> Once<'a> {
    fn new(message: &'static str, help: &'static str) -> Self {
        Self { first: BTreeMap::new(), message, help }
    }

    fn take(&mut self, value: &str, text: &'a Text, report: &mut Report) -> Option<String> {
        if let Some(earlier) = self.first.insert(value.to_owned(), &text.place) {
            report.error_and(&text.place, (earlier, "first written here"), self.message, self.help);
            return None;
        }
        Some(value.to_owned())
    }
}

/// An absolute http or https URL without credentials. Never quotes it: it may hold some.
fn url(text: &Text, report: &mut Report) -> Option<String> {
    let help = "write an absolute URL: `http://HOST:PORT/PATH`";
    let mut refuse = |message: &str, help: &str| {
        report.error(&text.place, message, help);
        None
    };
    let value = text.value.as_str();
    let Some(("http" | "https", rest)) = value.split_once("://") else {
        return refuse("not an http or https URL", help);
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') || rest.split(['?', '#']).next().unwrap_or_default().contains('@') {
        let help = "remove what stands before the `@`; policy files are shown and copied, secrets are not";
        return refuse("credentials in a URL", help);
    }
    if value.len() > EXPRESSION_BYTES_MAX || value.contains('#') {
        return refuse("not a URL that can be fetched", "remove the fragment; at most 4096 bytes");
    }
    let parsed: Uri = match value.parse() {
        Ok(uri) => uri,
        Err(_) => return refuse("not a URL", help),
    };
    let host = parsed.host().unwrap_or_default();
    let port = authority.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')).map(|(_, port)| port);
    if host.is_empty() || port.is_some_and(|port| port.parse::<u16>().map_or(true, |port| port == 0)) {
        return refuse("a URL without a host or with a bad port", help);
    }
    Some(value.to_owned())
}
