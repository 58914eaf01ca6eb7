// SPDX-License-Identifier: Apache-2.0
//! Certificates that are trusted for every store besides the public ones and the store's own: those of a house's own CA, or of a
//! proxy that looks into TLS.
//!
//! In: a mounted file with PEM. Out: its text, which clients here are made with and which agents get with their grants: they
//! mount nothing for it. The file is looked at whenever a store is, so a new CA needs no restart; one that cannot be read
//! or used leaves the last good one, with a warning.
//!
//! Only stores: the agents' trust in the operator, and the operator's in the API server, have CAs of their own.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::Certificate;

/// A grant carries all of it. Some forty certificates.
const BYTES_MAX: usize = 64 << 10;

/// A file of certificates, and what it held when it was last fine.
#[derive(Clone)]
pub struct ExtraCa {
    file: PathBuf,
    last: Arc<Mutex<Last>>,
}

struct Last {
    pem: Arc<str>,
    /// Why the file cannot be used now; said once.
    error: Option<String>,
}

impl fmt::Debug for ExtraCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExtraCa").field("file", &self.file).finish_non_exhaustive()
    }
}

impl FromStr for ExtraCa {
    type Err = String;

    /// Reads the file of this path.
    fn from_str(path: &str) -> Result<Self, String> {
        let text = read(Path::new(path))?;
        Ok(Self { file: path.into(), last: Arc::new(Mutex::new(Last { pem: text.into(), error: None })) })
    }
}

impl ExtraCa {
    /// What the file holds now, else what it held last.
    pub fn pem(&self) -> Arc<str> {
        let read = read(&self.file);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let error = match read {
            Ok(text) => {
                if *text != *last.pem {
                    tracing::info!(file = %self.file.display(), "the extra CA has changed");
                    last.pem = text.into();
                }
                None
            }
            Err(error) => {
                if last.error.as_ref() != Some(&error) {
                    tracing::warn!(error, "the extra CA cannot be used, the last one stays");
                }
                Some(error)
            }
        };
        last.error = error;
        last.pem.clone()
    }
}

fn read(file: &Path) -> Result<String, String> {
    let failed = |why: &str| format!("{}: {why}", file.display());
    let text = std::fs::read_to_string(file).map_err(|error| failed(&error.to_string()))?;
    if text.len() > BYTES_MAX {
        return Err(failed(&format!("{} bytes of certificates, at most {BYTES_MAX} are taken", text.len())));
    }
    match Certificate::from_pem_bundle(text.as_bytes()) {
        Ok(some) if !some.is_empty() => Ok(text),
        Ok(_) => Err(failed("no certificate in PEM")),
        Err(error) => Err(failed(&format!("not a list of certificates in PEM: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(name: &str) -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap().pem()
    }

    #[test]
    fn a_file_is_read_again_and_one_that_is_broken_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.crt");
        let path = file.to_str().unwrap();
        for (text, why) in [("", "no certificate"), ("hello", "no certificate")] {
            std::fs::write(&file, text).unwrap();
            assert!(path.parse::<ExtraCa>().unwrap_err().contains(why), "{text:?}");
        }
        std::fs::write(&file, certificate("large").repeat(200)).unwrap();
        assert!(path.parse::<ExtraCa>().unwrap_err().contains("at most"));
        assert!("/nowhere/ca.crt".parse::<ExtraCa>().unwrap_err().contains("/nowhere/ca.crt"));

        let (old, new) = (certificate("old"), certificate("new"));
        std::fs::write(&file, &old).unwrap();
        let extra: ExtraCa = path.parse().unwrap();
        assert_eq!(*extra.pem(), *old);
        std::fs::write(&file, &new).unwrap();
        assert_eq!(*extra.clone().pem(), *new);
        std::fs::write(&file, "-----BEGIN CERT").unwrap();
        assert_eq!(*extra.pem(), *new, "half written");
        std::fs::remove_file(&file).unwrap();
        assert_eq!(*extra.pem(), *new, "gone");
    }
}
