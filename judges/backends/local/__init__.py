"""Parts of the backend of local models: loading, layout of batches, forward passes with shared prefixes, sampling."""
