"""Backends: how a judge's answer is obtained. One file each."""
