#!/bin/sh
# Puts a plan below a pull request: one comment for each environment, updated in place.
#
#   sticky-comment.sh github|gitea|gitlab PLAN.md
#
# The plan's first line is the marker by which its comment is found again. Only comments of AUTHOR
# are updated: whoever writes a comment may edit it later, and could make it say another plan.
#
# Needs curl and python3, and in the environment:
#   API      https://api.github.com, https://FORGE/api/v1 (Gitea, Forgejo), https://FORGE/api/v4
#   TOKEN    may comment there; it is in no argument list and no output
#   PROJECT  owner/name; GitLab: the number of the project
#   NUMBER   of the pull or merge request
#   AUTHOR   the login that TOKEN comments as; several when separated by spaces
set -eu

forge=$1 plan=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM

case $forge in
    github | gitea)
        list=$API/repos/$PROJECT/issues/$NUMBER/comments
        one=$API/repos/$PROJECT/issues/comments
        update=PATCH ;;
    gitlab)
        list=$API/projects/$PROJECT/merge_requests/$NUMBER/notes
        one=$list
        update=PUT ;;
    *)
        echo "sticky-comment: no such forge: $forge" >&2
        exit 1 ;;
esac

# METHOD URL [FILE]: the answer goes to standard output; an answer of 400 or above is an error.
call() {
    method=$1 url=$2
    shift 2
    [ $# = 0 ] || set -- --data-binary "@$1"
    case $forge in
        gitlab) header="PRIVATE-TOKEN: $TOKEN" ;;
        gitea) header="Authorization: token $TOKEN" ;;
        *) header="Authorization: Bearer $TOKEN" ;;
    esac
    printf 'header = "%s"\n' "$header" |
        curl --config - --silent --show-error --fail --max-time 30 --request "$method" \
            --header 'Content-Type: application/json' "$@" "$url"
}

# Says "found ID", "next FIRST_ID" (there may be more), or nothing.
pick='
import json, sys
page, plan, authors, before = sys.argv[1:]
marker = open(plan, encoding="utf-8").readline().strip()
if not marker.startswith("<!--"):
    sys.exit("sticky-comment: the first line of the plan is no marker")
comments = json.load(open(page, encoding="utf-8"))
for comment in comments:
    who = comment.get("user") or comment.get("author") or {}
    login = who.get("login") or who.get("username")
    if login in authors.split() and comment["body"].startswith(marker):
        print("found", comment["id"])
        break
else:
    # A forge without pages gives the same page again.
    if comments and str(comments[0]["id"]) != before:
        print("next", comments[0]["id"])
'

page=1 first=''
while :; do
    call GET "$list?per_page=100&limit=100&page=$page" > "$work/page"
    answer=$(python3 -I -c "$pick" "$work/page" "$plan" "$AUTHOR" "$first")
    case $answer in
        next*) first=${answer#next } page=$((page + 1)) ;;
        *) break ;;
    esac
done

python3 -I -c 'import json, sys; print(json.dumps({"body": open(sys.argv[1], encoding="utf-8").read()}))' \
    "$plan" > "$work/body"
case $answer in
    found*)
        call "$update" "$one/${answer#found }" "$work/body" > /dev/null
        echo "sticky-comment: updated" ;;
    *)
        call POST "$list" "$work/body" > /dev/null
        echo "sticky-comment: created" ;;
esac
