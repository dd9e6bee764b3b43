use std::fmt;

use tch::Tensor;

use crate::{BoxError, HookPoint};

/// Where in a run a hook is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Visit {
    /// The site.
    pub site: HookPoint,
    /// The column of the batch at which the activation's position axis begins: 0 in a plain run. In generation, where a
    /// model sees a few new tokens at a time, positions go on counting from the beginning of the whole sequence.
    pub first_pos: i64,
}

impl Visit {
    /// The visit of a plain run.
    pub fn of(site: HookPoint) -> Self {
        Self { site, first_pos: 0 }
    }
}

/// Sees the activation at a site, and may replace it.
pub trait Hook {
    /// `None` leaves the activation as it is.
    ///
    /// # Errors
    /// Whatever stops the run; the model reports it with the site's name.
    fn visit(&mut self, at: Visit, act: &Tensor) -> Result<Option<Tensor>, BoxError>;
}

impl<H: Hook + ?Sized> Hook for &mut H {
    fn visit(&mut self, at: Visit, act: &Tensor) -> Result<Option<Tensor>, BoxError> {
        (**self).visit(at, act)
    }
}

impl<H: Hook + ?Sized> Hook for Box<H> {
    fn visit(&mut self, at: Visit, act: &Tensor) -> Result<Option<Tensor>, BoxError> {
        (**self).visit(at, act)
    }
}

/// A hook that looks and changes nothing.
pub fn observe<F>(see: F) -> impl Hook
where
    F: FnMut(HookPoint, &Tensor) -> Result<(), BoxError>,
{
    Observe(see)
}

/// A hook that puts something in the activation's place.
pub fn replace<F>(make: F) -> impl Hook
where
    F: FnMut(HookPoint, &Tensor) -> Result<Tensor, BoxError>,
{
    Replace(make)
}

struct Observe<F>(F);
struct Replace<F>(F);

impl<F: FnMut(HookPoint, &Tensor) -> Result<(), BoxError>> Hook for Observe<F> {
    fn visit(&mut self, at: Visit, act: &Tensor) -> Result<Option<Tensor>, BoxError> {
        (self.0)(at.site, act).map(|()| None)
    }
}

impl<F: FnMut(HookPoint, &Tensor) -> Result<Tensor, BoxError>> Hook for Replace<F> {
    fn visit(&mut self, at: Visit, act: &Tensor) -> Result<Option<Tensor>, BoxError> {
        (self.0)(at.site, act).map(Some)
    }
}

impl<F> fmt::Debug for Observe<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("observe(…)")
    }
}

impl<F> fmt::Debug for Replace<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("replace(…)")
    }
}
