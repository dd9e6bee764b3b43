//! As much of an S3 server as the tests need, in memory: objects, uploads in parts, listings.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex, mpsc},
    thread,
};

use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{AUTHORIZATION, CONTENT_LENGTH, ETAG, LAST_MODIFIED},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;

/// What the server holds, and what was asked of it.
#[derive(Debug, Default)]
pub(crate) struct Bucket {
    pub(crate) objects: BTreeMap<String, Vec<u8>>,
    uploads: BTreeMap<String, BTreeMap<u32, Vec<u8>>>,
    /// Method and query of each request.
    pub(crate) requests: Vec<String>,
    /// How many of the next writes are answered with an error that is not worth another try.
    pub(crate) refuse: usize,
    /// How many of the next requests are answered with one that is.
    pub(crate) stumble: usize,
}

pub(crate) struct S3 {
    pub(crate) endpoint: String,
    pub(crate) bucket: Arc<Mutex<Bucket>>,
}

pub(crate) const KEY_ID: &str = "AKIATEST";

impl S3 {
    /// Serves the bucket `b` until the tests end.
    pub(crate) fn start() -> Self {
        let bucket = Arc::<Mutex<Bucket>>::default();
        let (send, receive) = mpsc::channel();
        let shared = bucket.clone();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                send.send(listener.local_addr().unwrap().port()).unwrap();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let bucket = shared.clone();
                    tokio::spawn(async move {
                        let service = service_fn(move |request| answer(request, bucket.clone()));
                        let _closed =
                            http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                    });
                }
            });
        });
        Self { endpoint: format!("http://127.0.0.1:{}", receive.recv().unwrap()), bucket }
    }

    /// What a store needs to be told.
    pub(crate) fn options(&self) -> Vec<(String, String)> {
        [
            ("AWS_ENDPOINT", self.endpoint.as_str()),
            ("aws_access_key_id", KEY_ID),
            ("aws_secret_access_key", "secret"),
            ("aws_region", "eu-north-1"),
            ("aws_allow_http", "true"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .to_vec()
    }
}

async fn answer(
    request: Request<Incoming>,
    bucket: Arc<Mutex<Bucket>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let signed = head.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !signed.starts_with(&format!("AWS4-HMAC-SHA256 Credential={KEY_ID}/")) {
        return Ok(reply(StatusCode::FORBIDDEN, error("AccessDenied")));
    }
    let query: BTreeMap<String, String> = head
        .uri
        .query()
        .unwrap_or_default()
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(key, value)| (key.to_owned(), value.replace("%2F", "/")))
        .collect();
    let path = head.uri.path().to_owned();
    let Some(key) = path.strip_prefix("/b").map(|key| key.trim_start_matches('/').to_owned()) else {
        return Ok(reply(StatusCode::NOT_FOUND, error("NoSuchBucket")));
    };
    let mut bucket = bucket.lock().unwrap();
    bucket.requests.push(format!("{} {key}?{}", head.method, head.uri.query().unwrap_or_default()));
    if bucket.stumble > 0 {
        bucket.stumble -= 1;
        return Ok(reply(StatusCode::SERVICE_UNAVAILABLE, error("SlowDown")));
    }
    if bucket.refuse > 0 && matches!(head.method, Method::PUT | Method::POST) {
        bucket.refuse -= 1;
        return Ok(reply(StatusCode::BAD_REQUEST, error("QuotaExceeded")));
    }
    Ok(bucket.answer(&head.method, &key, &query, &body))
}

impl Bucket {
    fn answer(
        &mut self,
        method: &Method,
        key: &str,
        query: &BTreeMap<String, String>,
        body: &Bytes,
    ) -> Response<Full<Bytes>> {
        let upload = query.get("uploadId").cloned();
        match (method.as_str(), upload) {
            ("GET", None) if key.is_empty() => self.list(query),
            ("GET" | "HEAD", None) => match self.objects.get(key) {
                Some(object) => {
                    let mut response = reply(StatusCode::OK, object.clone());
                    response.headers_mut().insert(CONTENT_LENGTH, object.len().into());
                    response
                }
                None => reply(StatusCode::NOT_FOUND, error("NoSuchKey")),
            },
            ("PUT", None) => {
                self.objects.insert(key.to_owned(), body.to_vec());
                reply(StatusCode::OK, Vec::new())
            }
            ("PUT", Some(upload)) => {
                let number = query["partNumber"].parse().unwrap();
                self.uploads.get_mut(&upload).unwrap().insert(number, body.to_vec());
                reply(StatusCode::OK, Vec::new())
            }
            ("POST", None) if query.contains_key("uploads") => {
                let upload = format!("upload-{}", self.requests.len());
                self.uploads.insert(upload.clone(), BTreeMap::new());
                let xml = format!(
                    "<InitiateMultipartUploadResult><Bucket>b</Bucket><Key>{key}</Key><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
                );
                reply(StatusCode::OK, xml.into_bytes())
            }
            ("POST", Some(upload)) => {
                let parts = self.uploads.remove(&upload).unwrap();
                self.objects.insert(key.to_owned(), parts.into_values().flatten().collect());
                let xml = "<CompleteMultipartUploadResult><ETag>\"e\"</ETag></CompleteMultipartUploadResult>";
                reply(StatusCode::OK, xml.as_bytes().to_vec())
            }
            ("DELETE", Some(upload)) => {
                self.uploads.remove(&upload);
                reply(StatusCode::NO_CONTENT, Vec::new())
            }
            ("POST", None) if query.contains_key("delete") => {
                let text = String::from_utf8(body.to_vec()).unwrap();
                let keys: Vec<&str> =
                    text.split("<Key>").skip(1).filter_map(|k| k.split("</Key>").next()).collect();
                let mut xml = "<DeleteResult>".to_owned();
                for key in keys {
                    self.objects.remove(key);
                    xml += &format!("<Deleted><Key>{key}</Key></Deleted>");
                }
                reply(StatusCode::OK, (xml + "</DeleteResult>").into_bytes())
            }
            ("DELETE", None) => {
                self.objects.remove(key);
                reply(StatusCode::NO_CONTENT, Vec::new())
            }
            (method, _) => panic!("{method} {key} {query:?}"),
        }
    }

    /// Seven objects a page, so that pages must be turned.
    fn list(&self, query: &BTreeMap<String, String>) -> Response<Full<Bytes>> {
        let prefix = query.get("prefix").map_or("", String::as_str);
        let after = query.get("continuation-token").map_or("", String::as_str);
        let mut found =
            self.objects.iter().filter(|(key, _)| key.starts_with(prefix) && key.as_str() > after);
        let page: Vec<_> = found.by_ref().take(7).collect();
        let mut xml = "<ListBucketResult>".to_owned();
        for (key, object) in &page {
            xml += &format!(
                "<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>\"e\"</ETag><Size>{}</Size></Contents>",
                object.len()
            );
        }
        if let (Some(_), Some((last, _))) = (found.next(), page.last()) {
            xml += &format!(
                "<IsTruncated>true</IsTruncated><NextContinuationToken>{last}</NextContinuationToken>"
            );
        }
        reply(StatusCode::OK, (xml + "</ListBucketResult>").into_bytes())
    }
}

fn reply(status: StatusCode, body: Vec<u8>) -> Response<Full<Bytes>> {
    let builder = Response::builder().status(status).header(ETAG, "\"e\"");
    builder.header(LAST_MODIFIED, "Thu, 01 Jan 2026 00:00:00 GMT").body(Full::new(body.into())).unwrap()
}

fn error(code: &str) -> Vec<u8> {
    format!("<Error><Code>{code}</Code><Message>{code}</Message></Error>").into_bytes()
}
