"""A workspace in a bucket, `s3://BUCKET/PREFIX`: this machine's copy of it, and how the two are kept alike.

Stages run on local files, as in a folder. Before a stage its inputs are fetched, after it its outputs are uploaded, the
manifest last; meanwhile its unfinished work is mirrored. The bucket is what counts: a stage directory that is complete
there replaces the one here. Records (configs, journals, the registry, reports) go both ways. Only the holder of the
lease writes; but looks at the champion and askings of anchors, which are only ever added, need none.

The copy lies below $RLAIF_CACHE, or the user's cache directory; it may be deleted between runs. Seconds after which a
dead machine's lease ends: $RLAIF_LEASE_SECONDS (60); between two mirrored snapshots: $RLAIF_MIRROR_SECONDS (30).
"""

from flows.bucket.session import carried
from flows.bucket.workspace import Remote, fetched_path

__all__ = ["Remote", "carried", "fetched_path"]
