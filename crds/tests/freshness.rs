// SPDX-License-Identifier: Apache-2.0
//! `yaml/` says what the types say.

use std::path::Path;

#[test]
fn the_generated_definitions_are_those_of_the_types() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("yaml");
    let update = std::env::var_os("UPDATE").is_some();
    let mut stale = Vec::new();
    for (name, definition) in tracelake_crds::ALL {
        let path = folder.join(format!("{name}.yaml"));
        let yaml = serde_yaml::to_string(&definition()).unwrap();
        let wanted = format!(
            "# Generated from crds/src by `UPDATE=1 cargo test -p tracelake-crds`; do not edit.\n{yaml}"
        );
        if update {
            std::fs::write(&path, &wanted).unwrap();
        } else if std::fs::read_to_string(&path).unwrap_or_default() != wanted {
            stale.push(path);
        }
    }
    assert!(
        stale.is_empty(),
        "stale or of no kind: {stale:?}; run: UPDATE=1 cargo test -p tracelake-crds --test freshness"
    );
}
