//! Harvests in an S3-compatible bucket, spoken to over HTTP.

use activations::{Manifest, Shards, ShardsOptions, Store};
use testkit::assert_same;

use crate::common::{all, harvested, live, options, refused, toy};
use crate::s3_server::S3;

const PLACE: &str = "s3://b/some/prefix";

fn read(store: &Store) -> activations::Result<Vec<tch::Tensor>> {
    Ok(all(&mut Shards::open(store, &ShardsOptions::default())?))
}

#[test]
fn a_bucket_is_as_good_as_a_folder() {
    let (s3, model) = (S3::start(), toy());
    let memory = Store::memory().unwrap();
    let want = harvested(&mut live(&model, 9, Some(1)), &memory, &options(10)).unwrap();
    // In one piece, and in parts of 100 bytes: a shard has 240.
    for (part_bytes, in_parts) in [(1 << 20, false), (100, true)] {
        s3.bucket.lock().unwrap().objects.clear();
        s3.bucket.lock().unwrap().requests.clear();
        let store = Store::open(PLACE, s3.options()).unwrap().with_part_bytes(part_bytes);
        let manifest = harvested(&mut live(&model, 9, Some(1)), &store, &options(10)).unwrap();
        assert_eq!(manifest, want);
        for (got, want) in read(&store).unwrap().iter().zip(all(&mut live(&model, 9, Some(1)))) {
            assert_same("rows", got, &want);
        }
        let bucket = s3.bucket.lock().unwrap();
        let parts = bucket.requests.iter().filter(|request| request.contains("partNumber=3")).count();
        assert_eq!(parts > 0, in_parts);
        assert!(
            bucket.objects.keys().all(|key| key.starts_with("some/prefix/")),
            "{:?}",
            bucket.objects.keys()
        );
        assert_eq!(bucket.objects.len(), 1 + 3 * want.shards.len());
        assert_eq!(bucket.objects["some/prefix/hook_embed/00000001.f32"].len(), 240);
        assert!(bucket.objects.len() > 7, "more than a page of the listing");
    }
}

#[test]
fn a_bucket_that_refuses_is_named_and_the_harvest_goes_on_later() {
    let (s3, model) = (S3::start(), toy());
    for part_bytes in [1 << 20, 100] {
        s3.bucket.lock().unwrap().objects.clear();
        let store = Store::open(PLACE, s3.options()).unwrap().with_part_bytes(part_bytes);
        let mut tries = 0;
        let manifest = loop {
            // Every try gets somewhat further.
            let mut chunks = 0;
            let bucket = s3.bucket.clone();
            let done = activations::harvest(&mut live(&model, 9, Some(1)), &store, &options(10), |_| {
                chunks += 1;
                if tries < 3 && chunks == 3 {
                    bucket.lock().unwrap().refuse = 1;
                }
                std::ops::ControlFlow::Continue(())
            });
            match done {
                Ok(manifest) => break manifest,
                Err(error) => refused(Err::<(), _>(error), &[PLACE, "QuotaExceeded"]),
            };
            tries += 1;
        };
        assert!(tries > 0);
        assert!(manifest.complete);
        assert_same("rows", &read(&store).unwrap()[0], &all(&mut live(&model, 9, Some(1)))[0]);
    }
}

#[test]
fn a_bucket_that_stumbles_is_asked_again() {
    let (s3, model) = (S3::start(), toy());
    let store = Store::open(PLACE, s3.options()).unwrap();
    s3.bucket.lock().unwrap().stumble = 2;
    assert!(harvested(&mut live(&model, 9, Some(1)), &store, &options(10)).unwrap().complete);
    s3.bucket.lock().unwrap().stumble = 2;
    assert_same("rows", &read(&store).unwrap()[0], &all(&mut live(&model, 9, Some(1)))[0]);
}

#[test]
fn damage_in_a_bucket_is_named() {
    let (s3, model) = (S3::start(), toy());
    let store = Store::open(PLACE, s3.options()).unwrap();
    harvested(&mut live(&model, 9, Some(1)), &store, &options(10)).unwrap();
    let name = "some/prefix/hook_embed/00000002.f32";
    s3.bucket.lock().unwrap().objects.get_mut(name).unwrap()[7] ^= 1;
    let mut source = Shards::open(&store, &ShardsOptions::default()).unwrap();
    let said =
        std::iter::repeat_with(|| activations::Source::next(&mut source)).find_map(Result::err).unwrap();
    refused(Err::<(), _>(said), &["s3://b/some/prefix/hook_embed/00000002.f32", "checksum"]);
    s3.bucket.lock().unwrap().objects.remove(name);
    refused(read(&store), &["s3://b/some/prefix/hook_embed/00000002.f32", "not there"]);
    refused(
        Manifest::read(&Store::open("s3://b/other", s3.options()).unwrap()),
        &["s3://b/other/manifest.json"],
    );
}

#[test]
fn wrong_keys_options_and_places_are_refused() {
    let s3 = S3::start();
    let with = |key: &str, value: &str| {
        let mut options = s3.options();
        options.retain(|(known, _)| known != key);
        options.push((key.to_owned(), value.to_owned()));
        options
    };
    let stranger = Store::open(PLACE, with("aws_access_key_id", "STRANGER")).unwrap();
    let said = refused(Manifest::read(&stranger), &["s3://b/some/prefix/manifest.json"]);
    assert!(!said.contains("secret"), "{said}");
    refused(Store::open(PLACE, with("aws_nonsense", "1")), &[PLACE, "`aws_nonsense`"]);
    refused(Store::open(PLACE, with("aws_allow_http", "perhaps")), &[PLACE, "perhaps"]);
    refused(Store::open("ftp://b/prefix", []), &["ftp"]);
}

/// Whoever calls from inside a runtime is served as well.
#[test]
fn a_store_works_inside_a_runtime() {
    let (s3, model) = (S3::start(), toy());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for store in [Store::open(PLACE, s3.options()).unwrap(), Store::memory().unwrap()] {
            let manifest = harvested(&mut live(&model, 9, Some(1)), &store, &options(10)).unwrap();
            assert_eq!(read(&store).unwrap()[0].size()[0] as u64, manifest.stored_rows());
        }
    });
}
