//! Where a password comes from: standard input if told so, the environment (or a file that it names), or a terminal
//! that does not show it.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};

use tokio_util::sync::CancellationToken;

use crate::client::Error as ClientError;
use crate::config::{Error, secret, variable};

const VARIABLE: &str = "CYXCLOUD_PASSWORD";
/// Longest password that is read.
const BYTES_MAX: u64 = 4 << 10;

/// The password for this account.
pub(crate) async fn obtain(
    from_stdin: bool,
    email: &str,
    interrupt: &CancellationToken,
) -> anyhow::Result<String> {
    if !from_stdin && let Some(password) = secret(VARIABLE, variable).map_err(Error::from)? {
        return Ok(password);
    }
    // Dropped whatever happens: a terminal that stayed silent would be a nuisance.
    let (_silence, source): (_, Box<dyn Read + Send>) = if from_stdin {
        (None, Box::new(std::io::stdin()))
    } else {
        let (silence, terminal) = ask(email)?;
        (Some(silence), Box::new(terminal))
    };
    let reading = tokio::task::spawn_blocking(move || line(source));
    let password = tokio::select! {
        biased;
        () = interrupt.cancelled() => return Err(ClientError::Interrupted.into()),
        read = reading => read??,
    };
    if password.is_empty() {
        return Err(Error::Usage("the password is empty".to_owned()).into());
    }
    Ok(password)
}

/// The first line, without its end.
fn line(source: impl Read) -> std::io::Result<String> {
    let mut text = String::new();
    BufReader::new(source.take(BYTES_MAX)).read_line(&mut text)?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(unix)]
fn ask(email: &str) -> Result<(Silence, File), Error> {
    let no_terminal = |_| {
        Error::Usage(format!(
            "there is no terminal to ask for the password; use --password-stdin, or set {VARIABLE}"
        ))
    };
    let mut terminal = File::options().read(true).write(true).open("/dev/tty").map_err(no_terminal)?;
    let _ = write!(terminal, "Password for {}: ", crate::progress::printable(email));
    let silence = Silence::begin(terminal.try_clone().map_err(no_terminal)?)
        .map_err(|error| no_terminal(error.into()))?;
    Ok((silence, terminal))
}

#[cfg(not(unix))]
fn ask(_email: &str) -> Result<(Silence, File), Error> {
    Err(Error::Usage(format!("use --password-stdin, or set {VARIABLE}")))
}

/// A terminal that does not show what is typed, until this is dropped.
#[derive(Debug)]
struct Silence {
    #[cfg(unix)]
    terminal: File,
    #[cfg(unix)]
    before: rustix::termios::Termios,
}

#[cfg(unix)]
impl Silence {
    fn begin(terminal: File) -> rustix::io::Result<Self> {
        use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
        let before = tcgetattr(&terminal)?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        silent.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(&terminal, OptionalActions::Flush, &silent)?;
        Ok(Self { terminal, before })
    }
}

#[cfg(unix)]
impl Drop for Silence {
    fn drop(&mut self) {
        use rustix::termios::{OptionalActions, tcsetattr};
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_one_line() {
        assert_eq!(line(&b"with spaces \r\nmore"[..]).expect("read"), "with spaces ");
        assert_eq!(line(&b"no end"[..]).expect("read"), "no end");
        assert_eq!(line(&b""[..]).expect("read"), "");
        assert!(line(&b"\xff\xfe"[..]).is_err());
    }
}
