# The nodes meet at the first one: ten minutes for its address to be known, an hour for all to come.
head=@{head}
rank=@{rank}
address=@{address}
is_head=false
[ "$rank" != 0 ] || is_head=true
