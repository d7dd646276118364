"""Where images come from and go to: one module for each kind of place, behind two small interfaces.

A place is written ``transport:details``, in the notation that skopeo and Podman share:

    docker://REFERENCE           a registry
    oci:DIRECTORY[:NAME]         an OCI layout
    oci-archive:FILE[:NAME]      the same in a tar file
    docker-archive:FILE[:NAME]   what ``docker save`` writes
    dir:DIRECTORY                one image's files, as skopeo lays them out
    store:NAME                   a name in a store's namespace

A new source is four methods, a new sink five; :mod:`sampan.registry.copying` does the rest: it checks every digest,
sends blobs before what speaks of them, and names the image last. A source is a value of the API, too:
:func:`sampan.registry.open_image`.
"""
