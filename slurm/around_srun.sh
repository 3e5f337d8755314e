# The last element of an array has the array's id as its own, and SLURM would take it for all elements.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
# A job that may shrink uses as many of its nodes as divide the number it would like: so the batch still divides.
used=$SLURM_JOB_NUM_NODES
while ((wanted_nodes % used)); do used=$((used - 1)); done
export SLURM_NNODES=$used
# Ends here when the stage is finished, or when the last starts of this job have brought it no further.
verdict=0
attempts begin $(scontrol show hostnames "$SLURM_JOB_NODELIST" | head --lines="$used") || verdict=$?
case $verdict in
  0) ;;
  3) exit 0 ;;
  *) exit 1 ;;
esac
# What SLURM makes of this job now; asked again for a while, since the controller may be starting anew.
ask() {
  for _ in {1..60}; do
    if told=$(scontrol --oneliner show job "$job"); then break; fi
    sleep 5
  done
  [[ $told =~ JobState=([A-Z_]+) ]] && state=${BASH_REMATCH[1]}
  [[ $told =~ Reason=TimeLimit ]] && state=TIME_LIMIT
  # Another start has taken this one's place.
  [[ $told =~ Restarts=([0-9]+) && ${BASH_REMATCH[1]} != "${SLURM_RESTART_COUNT:-0}" ]] && state=REQUEUED
  return 0
}
# Whatever ends the ranks: note it, and start again where that is of use. Nothing is decided where SLURM has decided.
at_end() {
  status=$? state=UNKNOWN verdict=0
  trap - EXIT
  trap '' TERM  # which requeueing sends, and there is more to do
  ask
  excluded=$(attempts end "$status" "$state") || verdict=$?
  case $verdict in
    0)
      for _ in {1..60}; do scontrol requeue "$job" && break; sleep 5; done
      if [ -n "$excluded" ]; then scontrol update JobId="$job" ExcNodeList="$excluded"; fi
      ;;
    3) exit 0 ;;
  esac
  exit "$status"
}
trap at_end EXIT
# SIGTERM is for the ranks: without a trap of its own bash would not wait for what they save.
trap : TERM
