"""OCI images: references, layouts, manifests, layers."""
