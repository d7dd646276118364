"""OCI, CNI and Docker documents as typed structures, with validation that names the field."""
