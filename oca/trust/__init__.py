"""Who belongs to the fleet: identities, their enrolment and their revocation."""
