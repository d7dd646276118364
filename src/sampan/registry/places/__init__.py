"""Where images come from and go to: one module for each kind of place, behind two small interfaces.

A place is written ``transport:details``, in the notation that skopeo and Podman share:

    docker://REFERENCE           a registry
    oci:DIRECTORY[:NAME]         an OCI layout
    oci-archive:FILE[:NAME]      the same in a tar file
    docker-archive:FILE[:NAME]   what ``docker save`` writes
    dir:DIRECTORY                one image's files, as skopeo lays them out
    store:NAME                   a name in a store's namespace

A new source is three methods, a new sink five: a source gives an image as a value (:mod:`sampan.image.model`), and
:mod:`sampan.image.writing` brings a value to a sink: it checks every digest, sends blobs before what speaks of them,
and names the image last. :mod:`sampan.registry.copying` puts both together.
"""
