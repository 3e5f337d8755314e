# A job that may shrink uses as many of its nodes as divide the number it would like: so the batch still divides.
used=$SLURM_JOB_NUM_NODES
while ((wanted_nodes % used)); do used=$((used - 1)); done
export SLURM_NNODES=$used
# Ends here when the last starts of this job have brought it no further.
attempts begin $(scontrol show hostnames "$SLURM_JOB_NODELIST" | head --lines="$used") || exit 1
# Whatever ends the ranks: note it, and start again where that is of use. Nothing is decided where SLURM has decided.
at_end() {
  status=$?
  trap - EXIT
  trap '' TERM  # which requeueing sends, and there is more to do
  # Asked again until the controller answers: it may be starting anew.
  until state=$(scontrol --oneliner show job "$SLURM_JOB_ID" | grep --only-matching --max-count=1 --perl-regexp 'JobState=\K\S+')
  do sleep 5; done
  if excluded=$(attempts end "$status" "$state"); then
    scontrol requeue "$SLURM_JOB_ID"
    if [ -n "$excluded" ]; then scontrol update JobId="$SLURM_JOB_ID" ExcNodeList="$excluded"; fi
  fi
  exit "$status"
}
trap at_end EXIT
