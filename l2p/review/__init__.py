"""People in the loop: blind pairwise judgement of pictures in the browser, its summary, and a page to try a student."""
