# Sourced by recipes. trained RUN COMMAND...: trains, going on where RUN was stopped, unless it has come to its end; fails if it was stopped again.
trained() {
  local run=$1 resume=()
  shift
  if [ -e "$run/finished" ]; then return; fi
  if [ -e "$run/last.pth" ]; then resume=(--resume auto); fi
  "$@" --output_dir "$run" ${resume[@]+"${resume[@]}"}
  [ -e "$run/finished" ]
}
