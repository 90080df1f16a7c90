"""Looks at a workspace that no round needs: one preference explained, judges against people, drift, the champion."""
