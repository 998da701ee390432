"""What was measured, as files hold it: no torch, no judgement."""
