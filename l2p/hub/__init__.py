"""Publishing: a student's folder goes to the Hub and comes back, with a card that tells facts, or leaves in the form
that other libraries read."""
