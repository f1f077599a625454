//! What is read from a bucket is what is read from the files.

use super::export::filled;
use super::fixture::{DAY, version};
use crate::bucket::Prefix;
use crate::dataset::{Error, Filter, Records};
use crate::model::Role;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Puts all sealed files below a directory into a bucket, under the names that a gateway gives them.
fn upload(data: &Path, prefix: &Prefix) -> usize {
    let mut dirs: Vec<PathBuf> = ["predictions", "feedback"].map(|kind| data.join(kind)).into();
    let mut files = 0;
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let name = path.strip_prefix(data).unwrap().with_extension("eu-1.0a1b2c3d.parquet");
            prefix.replace(name.to_str().unwrap(), &path, "0").unwrap();
            files += 1;
        }
    }
    files
}

#[test]
fn an_export_over_a_bucket_is_the_one_over_its_files() {
    let fixture = filled();
    // `Fixture::run` takes what lives for long.
    let prefix: &Arc<Prefix> = Box::leak(Box::new(Arc::new(Prefix::in_memory("s3://b/p/q"))));
    assert_eq!(upload(&fixture.data(), prefix), 5);
    // Models and kinds whose names begin alike are not read.
    let stray = fixture.data().join("predictions/model=m/date=2026-11-03/00000000000000000001-0.parquet");
    prefix.replace("predictions/model=m2/date=2026-11-03/1-0.n.i.parquet", &stray, "0").unwrap();
    let next_day = DAY + 86_400_000_000;
    let filters = [
        Filter::default(),
        Filter { from: Some(next_day), ..Filter::default() },
        Filter { to: Some(next_day), ..Filter::default() },
        Filter { from: Some(DAY), to: Some(DAY + 2), ..Filter::default() },
        Filter { versions: vec![version(2)], roles: vec![Role::Shadow], ..Filter::default() },
    ];
    for (i, filter) in filters.iter().enumerate() {
        let export = |name: &str, bucket: bool| {
            let (exported, path) = fixture
                .run(name, |options| {
                    options.filter = filter.clone();
                    if bucket {
                        options.data = Records::Bucket(prefix);
                    }
                })
                .unwrap();
            (exported, std::fs::read(path).unwrap())
        };
        let (of_files, files) = export(&format!("files-{i}.parquet"), false);
        let (of_bucket, bucket) = export(&format!("bucket-{i}.parquet"), true);
        assert!(of_files.rows > 0 && of_files == of_bucket, "{filter:?}: {of_files:?} {of_bucket:?}");
        assert!(files == bucket, "{filter:?}: the same bytes");
    }
    let none = fixture.run("none.csv", |options| {
        options.data = Records::Bucket(prefix);
        options.filter.to = Some(0);
    });
    let expected = "s3://b/p/q has no matching predictions of m; there are other predictions of this model";
    assert_eq!(none.unwrap_err(), Error::Failed(expected.to_owned()));
}
