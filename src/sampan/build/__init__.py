"""Dockerfile to image: graph, solve, commit."""
