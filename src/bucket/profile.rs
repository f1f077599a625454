//! The profiles that AWS's programs share: keys that are written there, or the program that gives them.

use super::clouds::variable;
use super::program;
use async_trait::async_trait;
use jiff::Timestamp;
use object_store::CredentialProvider;
use object_store::aws::AwsCredential;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

/// What a profile says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Profile {
    pub keys: Keys,
    pub region: Option<String>,
}

/// Where the keys of a profile are.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Keys {
    Written {
        key: String,
        secret: String,
        token: Option<String>,
    },
    /// A program with its arguments prints them (`credential_process`). A profile that assumes a role or uses single sign-on asks AWS's own program.
    Asked(Vec<String>),
}

/// Keys that end are asked for again so long before, as AWS's programs do.
const SPARE: Duration = Duration::from_mins(5);
/// The most words of a command.
const MAX_WORDS: usize = 64;
/// What only AWS's program can do: each of these in a profile names a way to get keys of a session.
const SESSIONS: [&str; 5] = ["role_arn", "sso_session", "sso_start_url", "login_session", "web_identity_token_file"];

/// Without the keys.
impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Keys::Written { .. } => f.write_str("Written"),
            Keys::Asked(command) => f.debug_tuple("Asked").field(&command.first()).finish(),
        }
    }
}

impl Profile {
    /// `None` where no profile is named, and there is no default one with keys.
    ///
    /// # Errors
    /// When the named profile has no keys, or a command that cannot be read.
    pub(super) fn of_environment() -> Result<Option<Profile>, String> {
        let file = |name: &str, at: &str| {
            let path = variable(name).map(PathBuf::from).or_else(|| Some(Path::new(&variable("HOME")?).join(at)));
            path.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default()
        };
        let credentials = file("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials");
        let config = file("AWS_CONFIG_FILE", ".aws/config");
        let Some(name) = variable("AWS_PROFILE") else { return Profile::read(&credentials, &config, "default") };
        let missing = || {
            let name: String = name.chars().take(80).collect();
            format!(
                "AWS_PROFILE is {name:?}, which has no aws_access_key_id and aws_secret_access_key, credential_process, role or single sign-on in the files of AWS"
            )
        };
        Profile::read(&credentials, &config, &name)?.ok_or_else(missing).map(Some)
    }

    /// `None` where the profile has no way to get keys. The order is that of AWS's programs.
    fn read(credentials: &str, config: &str, name: &str) -> Result<Option<Profile>, String> {
        let section = if name == "default" { name.to_owned() } else { format!("profile {name}") };
        let find = |key: &str| entry(credentials, name, key).or_else(|| entry(config, &section, key));
        let with = |keys| Ok(Some(Profile { keys, region: find("region") }));
        if SESSIONS.iter().any(|key| find(key).is_some()) {
            let command = ["aws", "configure", "export-credentials", "--format", "process", "--profile", name];
            return with(Keys::Asked(command.map(str::to_owned).to_vec()));
        }
        if let (Some(key), Some(secret)) = (find("aws_access_key_id"), find("aws_secret_access_key")) {
            return with(Keys::Written { key, secret, token: find("aws_session_token") });
        }
        let Some(command) = find("credential_process") else { return Ok(None) };
        let words = shlex::split(&command).filter(|words| (1..=MAX_WORDS).contains(&words.len()));
        let wrong =
            || "credential_process of the profile is no command: expected a program and its arguments".to_owned();
        with(Keys::Asked(words.ok_or_else(wrong)?))
    }
}

/// The value of a key in a section of an INI file.
fn entry(text: &str, section: &str, key: &str) -> Option<String> {
    let (mut inside, mut found) = (false, None);
    for line in text.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix('[') {
            inside = rest.split(']').next().is_some_and(|name| name.trim() == section);
        } else if inside
            && !line.starts_with(['#', ';'])
            && let Some((name, value)) = line.split_once('=')
            && name.trim().eq_ignore_ascii_case(key)
        {
            found = Some(value.trim().to_owned()).filter(|value| !value.is_empty());
        }
    }
    found
}

/// Keys that a program gives. It is asked when the first request needs them, and again before they end.
#[derive(Debug)]
pub(super) struct FromProgram {
    command: Arc<[String]>,
    within: Duration,
    /// Held while the program runs: others wait for the same answer.
    last: Mutex<Option<Given>>,
}

#[derive(Debug, Clone)]
struct Given {
    keys: Arc<AwsCredential>,
    /// `None`: they do not end.
    until: Option<Timestamp>,
}

/// What the program prints (AWS's documentation, "Source credentials with an external process").
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Printed {
    version: u32,
    access_key_id: String,
    secret_access_key: String,
    session_token: Option<String>,
    expiration: Option<Timestamp>,
}

impl FromProgram {
    pub(super) fn new(command: Vec<String>, within: Duration) -> FromProgram {
        FromProgram { command: command.into(), within, last: Mutex::default() }
    }

    async fn ask(&self) -> Result<Given, String> {
        let (command, within) = (Arc::clone(&self.command), self.within);
        let name = command.first().cloned().unwrap_or_default();
        let asked = tokio::task::spawn_blocking(move || {
            let words: Vec<&str> = command.iter().map(String::as_str).collect();
            program::ask(&words, b"", within)
        });
        let printed = asked.await.map_err(|_| format!("the program {name} was not waited for"))?;
        given(&printed.map_err(|refused| refused.words)?)
            .map_err(|why| format!("the program {name} printed no keys: {why}"))
    }
}

/// # Errors
/// What is wrong, without what was printed.
fn given(printed: &[u8]) -> Result<Given, String> {
    let printed: Printed = serde_json::from_slice(printed).map_err(|error| {
        format!(
            "line {} column {}; expected JSON with Version, AccessKeyId and SecretAccessKey",
            error.line(),
            error.column()
        )
    })?;
    if printed.version != 1 {
        return Err(format!("Version is {}; expected 1", printed.version));
    }
    let Printed { access_key_id, secret_access_key, session_token, expiration, .. } = printed;
    let keys = AwsCredential { key_id: access_key_id, secret_key: secret_access_key, token: session_token };
    Ok(Given { keys: Arc::new(keys), until: expiration })
}

impl Given {
    fn lasts(&self, now: Timestamp, spare: Duration) -> bool {
        self.until.is_none_or(|until| now + spare < until)
    }
}

#[async_trait]
impl CredentialProvider for FromProgram {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let mut last = self.last.lock().await;
        let now = Timestamp::now();
        if let Some(given) = last.as_ref().filter(|given| given.lasts(now, SPARE)) {
            return Ok(Arc::clone(&given.keys));
        }
        match self.ask().await {
            Ok(given) => Ok(Arc::clone(&last.insert(given).keys)),
            Err(words) => match last.as_ref().filter(|given| given.lasts(now, Duration::ZERO)) {
                // The old ones are right for some minutes still.
                Some(given) => Ok(Arc::clone(&given.keys)),
                None => Err(object_store::Error::Generic { store: "S3", source: words.into() }),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREDENTIALS: &str = "# keys\n[default]\naws_access_key_id = A\naws_secret_access_key=s+/=\n\n[ml]\nAWS_ACCESS_KEY_ID = M\r\n\
         aws_secret_access_key = t\naws_session_token = u\n[empty]\naws_access_key_id =\naws_secret_access_key = x\n";
    const CONFIG: &str = "[default]\nregion = eu-north-1\n[profile ml]\nregion = eu-west-1\n; region = no\n\
         [profile sso]\nsso_start_url = https://x\nregion = us-east-1\n[profile own]\naws_access_key_id = O\naws_secret_access_key = p\n\
         [profile role]\nrole_arn = arn:aws:iam::1:role/r\nsource_profile = ml\naws_access_key_id = no\naws_secret_access_key = no\n\
         [profile asks]\ncredential_process = \"/opt/my tool/keys\" --for 'a b'\n[profile odd]\ncredential_process = 'open\n";

    #[test]
    fn profiles_are_read_as_awss_programs_write_them() {
        let read = |name: &str| {
            let Profile { keys, region } = Profile::read(CREDENTIALS, CONFIG, name).unwrap()?;
            let Keys::Written { key, secret, token } = keys else { panic!("{name}: {keys:?}") };
            Some([key, secret, token.unwrap_or_default(), region.unwrap_or_default()])
        };
        assert_eq!(read("default").unwrap(), ["A", "s+/=", "", "eu-north-1"]);
        assert_eq!(read("ml").unwrap(), ["M", "t", "u", "eu-west-1"]);
        assert_eq!(read("own").unwrap(), ["O", "p", "", ""], "keys may be in the configuration");
        for without in ["empty", "other", "profile ml", ""] {
            assert_eq!(read(without), None, "{without}");
        }
        for hostile in ["", "[", "[]", "=", "[default", "default]\naws_access_key_id = x", "\u{0}[default]\n=\n"] {
            assert_eq!(Profile::read(hostile, hostile, "default"), Ok(None), "{hostile:?}");
        }
        let asked = |name: &str| match Profile::read(CREDENTIALS, CONFIG, name).unwrap().unwrap() {
            Profile { keys: Keys::Asked(command), region } => (command.join("|"), region),
            other => panic!("{name}: {other:?}"),
        };
        let aws = |name: &str| format!("aws|configure|export-credentials|--format|process|--profile|{name}");
        assert_eq!(asked("sso"), (aws("sso"), Some("us-east-1".to_owned())));
        assert_eq!(asked("role"), (aws("role"), None), "a role comes before keys, as in AWS's programs");
        assert_eq!(asked("asks"), ("/opt/my tool/keys|--for|a b".to_owned(), None));
        assert!(
            Profile::read(CREDENTIALS, CONFIG, "odd")
                .unwrap_err()
                .starts_with("credential_process of the profile is no command")
        );
    }

    /// A program that gives keys until `ends`, another one each time, as long as the file `works` exists.
    fn program(dir: &Path, ends: &str) -> FromProgram {
        let script = format!(
            "cd {}; test -e works || exit 7; echo x >> asked; \
             echo \"{{\\\"Version\\\":1,\\\"AccessKeyId\\\":\\\"K$(wc -l < asked | tr -d ' ')\\\",\\\"SecretAccessKey\\\":\\\"s\\\"{ends}}}\"",
            dir.display()
        );
        std::fs::write(dir.join("works"), "").unwrap();
        FromProgram::new(["sh", "-c", &script].map(str::to_owned).to_vec(), Duration::from_mins(1))
    }

    #[tokio::test]
    async fn keys_of_a_program_are_kept_until_shortly_before_they_end() {
        let dir = tempfile::tempdir().unwrap();
        let ends = |in_s: i64| {
            let at = Timestamp::now() + jiff::SignedDuration::from_secs(in_s);
            format!(",\\\"Expiration\\\":\\\"{at}\\\"")
        };
        let key = async |keys: &FromProgram| keys.get_credential().await.map(|keys| keys.key_id.clone());
        for (number, (ends, second)) in
            [(String::new(), "K1"), (ends(3600), "K1"), (ends(200), "K2")].into_iter().enumerate()
        {
            let dir = dir.path().join(number.to_string());
            std::fs::create_dir(&dir).unwrap();
            let keys = program(&dir, &ends);
            assert_eq!(
                (key(&keys).await.unwrap().as_str(), key(&keys).await.unwrap().as_str()),
                ("K1", second),
                "{ends}"
            );
            std::fs::remove_file(dir.join("works")).unwrap();
            assert_eq!(key(&keys).await.unwrap(), second, "the old ones still work");
        }
        let none = program(dir.path(), &ends(-10));
        std::fs::remove_file(dir.path().join("works")).unwrap();
        let error = key(&none).await.unwrap_err().to_string();
        assert!(error.contains("the program sh ended with exit code 7"), "{error}");
    }

    #[test]
    fn what_a_program_prints_is_checked_and_never_shown() {
        for printed in [
            "",
            "secret",
            "{}",
            r#"{"Version":1,"AccessKeyId":"secret"}"#,
            r#"{"Version":2,"AccessKeyId":"secret","SecretAccessKey":"s"}"#,
        ] {
            let why = given(printed.as_bytes()).unwrap_err();
            assert!(why.contains("expected") && !why.contains("secret"), "{printed}: {why}");
        }
    }
}
