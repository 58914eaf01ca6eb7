// SPDX-License-Identifier: Apache-2.0
//! The CA and the serving certificate, and when each is replaced. Pure: no clock, no API server.
//!
//! In: what is held, what the Secret holds, the time. Out: what should be held from now on.
//!
//! A CA is replaced in two steps, so that no agent ever meets a certificate it cannot check: first the new CA
//! is published *beside* the old one while the old serving certificate stays in use; after `propagation` (the
//! time the kubelets need to refresh the mounted ConfigMap) the serving certificate is made anew with the new
//! CA; an hour later the old CA is dropped. Every step is in the Secret, so an operator that restarts goes on
//! where the last one was.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use serde::{Deserialize, Serialize};

const DAY: SignedDuration = SignedDuration::from_hours(24);
const CA_DAYS: i32 = 3 * 365;
const TLS_DAYS: i32 = 90;
/// Replaced when less than a third of the life is left.
const RENEW_SHARE: i32 = 3;
/// How long the old CA stays published after the serving certificate no longer needs it.
const OVERLAP: SignedDuration = SignedDuration::from_hours(1);
/// Clocks of nodes may be behind.
const BACKDATE: SignedDuration = SignedDuration::from_hours(24);

/// Everything the Secret holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Material {
    /// The CA's certificate, PEM.
    pub ca: String,
    /// Its key, PEM.
    pub ca_key: String,
    /// The serving certificate, PEM; signed by `previous_ca` while `state.serve_after` is set.
    pub tls: String,
    /// Its key, PEM.
    pub tls_key: String,
    /// The CA before this one, while it is still published.
    pub previous_ca: Option<String>,
    /// What is due when.
    pub state: State,
}

/// What is due when; stored as JSON beside the certificates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// End of the CA's life.
    pub ca_not_after: Timestamp,
    /// End of the serving certificate's life.
    pub tls_not_after: Timestamp,
    /// The names the serving certificate is for.
    pub names: Vec<String>,
    /// During a replacement: when the serving certificate is to be signed by the new CA.
    pub serve_after: Option<Timestamp>,
    /// When the previous CA is no longer published.
    pub previous_until: Option<Timestamp>,
}

/// What a certificate is made for.
#[derive(Clone, Debug)]
pub struct Settings {
    /// DNS names of the operator's Service.
    pub names: Vec<String>,
    /// From publishing a new CA to using it.
    pub propagation: Duration,
}

impl Material {
    /// A CA and a serving certificate. `previous_ca` is what agents may still hold.
    ///
    /// # Errors
    /// When a key or a certificate cannot be made.
    pub fn new(
        settings: &Settings,
        previous_ca: Option<String>,
        now: Timestamp,
    ) -> Result<Self, rcgen::Error> {
        let (ca, ca_key, ca_not_after) = make_ca(now)?;
        let (tls, tls_key, tls_not_after) = make_tls(&ca_key, &settings.names, now)?;
        let previous_until = previous_ca.as_ref().map(|_| now + OVERLAP);
        let names = settings.names.clone();
        let state = State { ca_not_after, tls_not_after, names, serve_after: None, previous_until };
        Ok(Self { ca, ca_key, tls, tls_key, previous_ca, state })
    }

    /// The first step of a replacement: a new CA beside the old one, the serving certificate as it was.
    fn replaced(&self, settings: &Settings, now: Timestamp) -> Result<Self, rcgen::Error> {
        let (ca, ca_key, ca_not_after) = make_ca(now)?;
        let serve_after =
            now + SignedDuration::try_from(settings.propagation).unwrap_or(SignedDuration::from_mins(5));
        Ok(Self {
            ca,
            ca_key,
            previous_ca: Some(self.ca.clone()),
            state: State {
                ca_not_after,
                serve_after: Some(serve_after),
                previous_until: Some(serve_after + OVERLAP),
                ..self.state.clone()
            },
            ..self.clone()
        })
    }

    /// The CA certificates that agents are to trust, PEM.
    pub fn published(&self) -> String {
        let mut all = self.ca.trim().to_owned() + "\n";
        if let Some(previous) = &self.previous_ca {
            all += previous.trim();
            all += "\n";
        }
        all
    }

    /// What should be held now, given what the Secret holds (`self`). `rotate` asks for a new CA; it is not
    /// heard during a replacement.
    ///
    /// # Errors
    /// When a key or a certificate cannot be made.
    pub fn advance(&self, settings: &Settings, rotate: bool, now: Timestamp) -> Result<Self, rcgen::Error> {
        let mut next = self.clone();
        let ca_due = now + DAY * (CA_DAYS / RENEW_SHARE) >= self.state.ca_not_after;
        if (rotate || ca_due) && self.state.serve_after.is_none() {
            next = self.replaced(settings, now)?;
        }
        let replacing = next.state.serve_after.is_some_and(|at| now < at);
        let tls_due = now + DAY * (TLS_DAYS / RENEW_SHARE) >= next.state.tls_not_after;
        let renamed = next.state.names != settings.names;
        if !replacing && (next.state.serve_after.is_some() || tls_due || renamed) {
            let (tls, tls_key, tls_not_after) = make_tls(&next.ca_key, &settings.names, now)?;
            next.tls = tls;
            next.tls_key = tls_key;
            next.state.tls_not_after = tls_not_after;
            next.state.names = settings.names.clone();
            next.state.serve_after = None;
        }
        if next.state.serve_after.is_none() && next.state.previous_until.is_some_and(|at| now >= at) {
            next.previous_ca = None;
            next.state.previous_until = None;
        }
        Ok(next)
    }

    /// What to hold when the Secret was deleted while this was in use: a replacement begins, unless one is under way. Of
    /// three CAs only two would be published, and the one that signed the serving certificate must be among them.
    ///
    /// # Errors
    /// When a key or a certificate cannot be made.
    pub fn after_deletion(&self, settings: &Settings, now: Timestamp) -> Result<Self, rcgen::Error> {
        if self.state.serve_after.is_some() { Ok(self.clone()) } else { self.replaced(settings, now) }
    }
}

fn ca_params(now: Timestamp) -> (CertificateParams, Timestamp) {
    let not_after = now + DAY * CA_DAYS;
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, "tracelake-operator-ca");
    params.distinguished_name = name;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = day(now - BACKDATE);
    params.not_after = day(not_after);
    (params, not_after)
}

fn make_ca(now: Timestamp) -> Result<(String, String, Timestamp), rcgen::Error> {
    let key = KeyPair::generate()?;
    let (params, not_after) = ca_params(now);
    let certificate = params.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem(), not_after))
}

fn make_tls(
    ca_key: &str,
    names: &[String],
    now: Timestamp,
) -> Result<(String, String, Timestamp), rcgen::Error> {
    // Name and key are all that a signature takes from the CA; its certificate need not be parsed.
    let issuer = Issuer::new(ca_params(now).0, KeyPair::from_pem(ca_key)?);
    let not_after = now + DAY * TLS_DAYS;
    let mut params = CertificateParams::new(names.to_vec())?;
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, "tracelake-operator");
    params.distinguished_name = name;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params.not_before = day(now - BACKDATE);
    params.not_after = day(not_after);
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer)?;
    Ok((certificate.pem(), key.serialize_pem(), not_after))
}

/// Midnight of that day: certificates need no finer time.
fn day(at: Timestamp) -> time::OffsetDateTime {
    let date = at.to_zoned(jiff::tz::TimeZone::UTC).date();
    rcgen::date_time_ymd(date.year().into(), date.month().unsigned_abs(), date.day().unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings { names: vec!["operator.tracelake.svc".to_owned()], propagation: Duration::from_secs(180) }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + second).unwrap()
    }

    #[test]
    fn nothing_changes_while_nothing_is_due() {
        let held = Material::new(&settings(), None, at(0)).unwrap();
        assert_eq!(held.advance(&settings(), false, at(3600)).unwrap(), held);
        assert_eq!(held.published().matches("BEGIN CERTIFICATE").count(), 1);
    }

    #[test]
    fn a_new_ca_is_published_beside_the_old_before_it_is_used() {
        let held = Material::new(&settings(), None, at(0)).unwrap();
        let first = held.advance(&settings(), true, at(10)).unwrap();
        assert_ne!(first.ca, held.ca);
        assert_eq!(first.tls, held.tls, "agents may not trust the new CA yet");
        assert!(first.published().contains(held.ca.trim()) && first.published().contains(first.ca.trim()));
        // Asked again while under way: nothing more happens.
        assert_eq!(first.advance(&settings(), true, at(100)).unwrap(), first);
        let second = first.advance(&settings(), false, at(190)).unwrap();
        assert_ne!(second.tls, held.tls);
        assert!(second.published().contains(held.ca.trim()), "agents may hold a stream of the old one");
        let third = second.advance(&settings(), false, at(190 + 3600)).unwrap();
        assert_eq!(third.published().trim(), first.ca.trim());
        assert_eq!(third.tls, second.tls);
    }

    #[test]
    fn a_deleted_secret_starts_a_replacement() {
        let held = Material::new(&settings(), None, at(0)).unwrap();
        let next = held.after_deletion(&settings(), at(1)).unwrap();
        assert_eq!(next.tls, held.tls);
        assert_eq!(next.previous_ca, Some(held.ca));
        let again = next.after_deletion(&settings(), at(2)).unwrap();
        assert_eq!(again, next, "the CA of the serving certificate stays published");
    }

    #[test]
    fn the_serving_certificate_is_renewed_in_time_and_when_the_service_is_renamed() {
        let held = Material::new(&settings(), None, at(0)).unwrap();
        let later = at(61 * 86_400);
        let renewed = held.advance(&settings(), false, later).unwrap();
        assert_ne!(renewed.tls, held.tls);
        assert_eq!(renewed.ca, held.ca);
        let other = Settings { names: vec!["other.tracelake.svc".to_owned()], ..settings() };
        assert_ne!(held.advance(&other, false, at(1)).unwrap().tls, held.tls);
    }
}
